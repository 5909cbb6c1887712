#include <gtest/gtest.h>

#include "models/io/json.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ergon::io {
namespace {

using test::error_of;

std::string error_for(std::string_view text) {
  return error_of([&] { parse_json(text, "a.json"); });
}

TEST(Json, RoundTripsThroughAFile) {
  test::TempFolder folder;
  const nlohmann::json value = {{"seed", 18446744073709551615u}, {"lr", 0.1}, {"name", "x\ny"}};
  write_json(folder / "a.json", value);
  EXPECT_EQ(read_json(folder / "a.json"), value);
  EXPECT_EQ(error_of([&] { read_json(folder / "a.json", 10); }),
            folder.string() + "/a.json: 66 bytes of JSON, expected at most 10");
}

TEST(Json, ErrorsAreOneLineAndNameTheFile) {
  EXPECT_EQ(error_for(""),
            "a.json: not valid JSON: parse error at line 1, column 1: syntax error while parsing value - "
            "unexpected end of input; expected '[', '{', or a literal");
  EXPECT_EQ(error_for("{\"a\": 1,\n\"a\": 2}"), "a.json: key 'a' appears twice");
  EXPECT_EQ(error_for("{\"a\": {\"b\": 1}, \"b\": [{\"a\": 1}, {\"a\": 1}]}"), "no error");
  EXPECT_EQ(error_for("[1, 1e999]"), "a.json: not valid JSON: number overflow parsing '1e999'");
  const std::string garbage = error_for(std::string("{\"a\n").append(5000, 'x'));
  EXPECT_EQ(garbage.find('\n'), std::string::npos);
  EXPECT_LT(garbage.size(), 300u);
}

TEST(Json, DepthIsBounded) {
  const auto nested = [](int depth) {
    return std::string(static_cast<std::size_t>(depth), '[')
           + std::string(static_cast<std::size_t>(depth), ']');
  };
  EXPECT_EQ(error_for(nested(kMaxJsonDepth)), "no error");
  EXPECT_EQ(error_for(nested(kMaxJsonDepth + 1)), "a.json: JSON nested deeper than 64 levels");
  EXPECT_EQ(error_for(std::string(1'000'000, '[')), "a.json: JSON nested deeper than 64 levels");
  std::string objects;
  for (int i = 0; i < 100; ++i) objects += "{\"a\":";
  EXPECT_EQ(error_for(objects), "a.json: JSON nested deeper than 64 levels");
}

TEST(Json, StringsThatAreNotUtf8CannotBeWritten) {
  EXPECT_EQ(error_of([] { to_text("\xff", "a.json"); }),
            "a.json: cannot be written as JSON: invalid UTF-8 byte at index 0: 0xFF");
}

TEST(Json, QuoteShortensAndEscapes) {
  EXPECT_EQ(quote("a\nb\x01"), "'a\\x0ab\\x01'");
  EXPECT_EQ(quote(std::string(500, 'x')), fmt::format("'{}...'", std::string(160, 'x')));
}

}  // namespace
}  // namespace ergon::io
