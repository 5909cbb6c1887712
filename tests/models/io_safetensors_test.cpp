#include <cstring>

#include <gtest/gtest.h>

#include "core/tensor.h"
#include "models/io/safetensors.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ergon::io {
namespace {

using test::error_of;
using test::read_text;
using test::TempFolder;
using test::write_text;

// A file's bytes: length, header, data.
std::string file_of(std::string_view header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes.append(header).append(data);
}

SafetensorsFile open(const std::string& bytes) {
  auto copy = std::make_shared<std::string>(bytes);
  const auto span = std::as_writable_bytes(std::span(copy->data(), copy->size()));
  return SafetensorsFile(span, copy, "x.safetensors");
}

// The error's text without "[safetensors] x.safetensors: ".
std::string error_for(const std::string& bytes) {
  const std::string error = error_of([&] { open(bytes).tensors(); });
  const std::string prefix = "[safetensors] x.safetensors: ";
  return error.starts_with(prefix) ? error.substr(prefix.size()) : error;
}
std::string error_for(std::string_view header, std::string_view data) {
  return error_for(file_of(header, data));
}

NamedTensors samples() {
  NamedTensors tensors;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i8, DType::u8, DType::i32,
                            DType::i64, DType::boolean}) {
    tensors.emplace_back(fmt::format("t.{}", name_of(dtype)),
                         test::integers({3, 5}, {.dtype = dtype, .low = 0, .high = 100}));
  }
  tensors.emplace_back("scalar", full({}, 2.5));
  tensors.emplace_back("none", empty({4, 0, 2}));
  tensors.emplace_back("transposed", test::uniform({4, 6}).transpose(0, 1));
  return tensors;
}

void expect_same(const NamedTensors& got, const NamedTensors& expected) {
  EXPECT_EQ(got.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    const auto found =
        std::find_if(got.begin(), got.end(), [&](const auto& named) { return named.first == name; });
    ASSERT_NE(found, got.end()) << name;
    EXPECT_TRUE(equal_bits(found->second, tensor)) << name;
  }
}

TEST(Safetensors, RoundTripsEveryDTypeShapeAndLayout) {
  TempFolder folder;
  const auto path = folder / "a.safetensors";
  write_safetensors(path, samples(), {{"format", "pt"}, {"by", "a \"test\""}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}, {"by", "a \"test\""}}));
  EXPECT_TRUE(file.contains("t.bf16"));
  EXPECT_FALSE(file.contains("t"));
  EXPECT_EQ(error_of([&] { file.tensor("t"); }),
            "[safetensors] " + path.string() + ": no tensor 't' among 12");
  expect_same(file.tensors(), samples());
  expect_same(read_safetensors(path), samples());
}

TEST(Safetensors, TheFileIsLaidOutForMapping) {
  TempFolder folder;
  write_safetensors(folder / "a.safetensors", samples());
  const std::string bytes = read_text(folder / "a.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ((8 + length) % 64, 0u);
  EXPECT_EQ(bytes[8], '{');
  EXPECT_EQ(bytes.substr(8, 100).find("{\"__metadata__\":{\"format\":\"pt\"},\"t.f64\":{\"dtype\":\"F64\","
                                      "\"shape\":[3,5],\"data_offsets\":[0,120]}"),
            0u);
  const SafetensorsFile file(folder / "a.safetensors");
  for (const TensorEntry& entry : file.entries()) {
    EXPECT_EQ(entry.begin % static_cast<std::uint64_t>(size_of(entry.dtype)), 0u) << entry.name;
  }
  // The same set in another order gives the same file.
  NamedTensors reversed = samples();
  std::reverse(reversed.begin(), reversed.end());
  write_safetensors(folder / "b.safetensors", reversed);
  EXPECT_EQ(read_text(folder / "b.safetensors"), bytes);
}

TEST(Safetensors, TensorsLieInTheMappedFileAndOutliveIt) {
  TempFolder folder;
  write_safetensors(folder / "a.safetensors", {{"x", arange(0, 100)}});
  Tensor x, again;
  {
    const SafetensorsFile file(folder / "a.safetensors");
    x = file.tensor("x");
    again = file.tensor("x");
  }
  EXPECT_EQ(x.data_ptr(), again.data_ptr());
  std::filesystem::remove(folder / "a.safetensors");
  EXPECT_TRUE(equal_bits(x, arange(0, 100)));
  x.fill_(7);  // private to this process
  EXPECT_EQ(again.select(0, 3).item<std::int64_t>(), 7);
}

TEST(Safetensors, MisalignedTensorsAreCopied) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"I32","shape":[2],"data_offsets":[1,9]}})";
  const std::string data("\x05\x01\x00\x00\x00\x02\x00\x00\x00", 9);
  const Tensor b = open(file_of(header, data)).tensor("b");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data_ptr()) % 4, 0u);
  EXPECT_EQ(b.to_vector<std::int32_t>(), (std::vector<std::int32_t>{1, 2}));
}

TEST(Safetensors, HeaderLengthErrors) {
  EXPECT_EQ(error_for(""), "0 bytes, expected at least 8");
  EXPECT_EQ(error_for(std::string(7, 'x')), "7 bytes, expected at least 8");
  EXPECT_EQ(error_for(std::string(16, '\xff')),
            "header of 18446744073709551615 bytes, at most 100000000 are allowed");
  EXPECT_EQ(error_for(file_of("{}", "").substr(0, 9)),
            "truncated: header of 2 bytes, the file has 1 after its length");
  EXPECT_EQ(error_for(" {}", ""), "the header does not begin with '{'");
  EXPECT_EQ(error_for("", ""), "the header does not begin with '{'");
  EXPECT_EQ(error_for("{}   ", ""), "no error");
  EXPECT_TRUE(error_for("{\"a\"", "").starts_with("not valid JSON: parse error at line 1, column 5: "));
}

// One F32 tensor "w" with these header members, and 8 bytes of data.
std::string error_for_tensor(std::string_view members) {
  return error_for(fmt::format("{{\"w\":{{{}}}}}", members), "12345678");
}

TEST(Safetensors, EntryErrors) {
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), "no error");
  EXPECT_EQ(error_for(R"({"w":[]})", ""), "tensor 'w' must be an object, got 'array'");
  EXPECT_EQ(error_for_tensor(R"("shape":[2],"data_offsets":[0,8])"), "tensor 'w' has no dtype");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","data_offsets":[0,8])"), "tensor 'w' has no shape");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[2])"), "tensor 'w' has no data_offsets");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])"),
            "tensor 'w' has dtype 'F8_E4M3': expected one of F32, BF16, F16, F64, I8, U8, I32, I64, BOOL");
  EXPECT_EQ(error_for_tensor(R"("dtype":3,"shape":[8],"data_offsets":[0,8])"),
            "tensor 'w': dtype must be a string, got 'number'");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"),
            "tensor 'w': shape must be an array, got 'number'");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"),
            "tensor 'w': a size in the shape must be an integer in [0, 2^63), got '-2'");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"),
            "tensor 'w': a size in the shape must be an integer in [0, 2^63), got '2.0'");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8])"),
            "tensor 'w' has 9 dimensions, at most 8 are supported");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[4611686018427387904,4,0],"data_offsets":[0,8])"),
            "tensor 'w': shape (4611686018427387904, 4, 0) has more than 2^63 bytes");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0])"),
            "tensor 'w': data_offsets must be [begin, end], got '[0]'");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,9])"),
            "tensor 'w': data_offsets [0, 9] are out of range: the file has 8 bytes of data");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
            "tensor 'w': data_offsets [8, 0] are out of range: the file has 8 bytes of data");
  EXPECT_EQ(error_for_tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
            "tensor 'w': shape (3,) of f32 needs 12 bytes, data_offsets [0, 8] give 8");
  EXPECT_EQ(error_for_tensor(R"("dtype":"BOOL","shape":[8],"data_offsets":[0,8])"),
            "tensor 'w': element 0 of BOOL is 49");
  EXPECT_EQ(error_for(R"({"w":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"w":1})", ""),
            "key 'w' appears twice");
  EXPECT_EQ(error_for(R"({"__metadata__":[]})", ""), "__metadata__ must be an object, got 'array'");
  EXPECT_EQ(error_for(R"({"__metadata__":{"a":1}})", ""), "__metadata__ 'a' must be a string, got 'number'");
}

TEST(Safetensors, GapsAndOverlaps) {
  const auto two = [](int begin, int end) {
    return fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},)"
                       R"("b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                       end - begin, begin, end);
  };
  EXPECT_EQ(error_for(two(4, 8), "12345678"), "no error");
  EXPECT_EQ(error_for(two(4, 4), "1234"), "no error");
  EXPECT_EQ(error_for(two(5, 8), "12345678"), "tensor 'b' begins at byte 5, leaving a gap after 4");
  EXPECT_EQ(error_for(two(3, 8), "12345678"), "tensor 'b' begins at byte 3, overlapping data up to 4");
  EXPECT_EQ(error_for(two(2, 2), "1234"), "tensor 'b' begins at byte 2, overlapping data up to 4");
  EXPECT_EQ(error_for(two(4, 7), "12345678"), "8 bytes of data, the tensors cover 7");
}

TEST(Safetensors, ACutAtAnyByteIsNoticed) {
  TempFolder folder;
  write_safetensors(folder / "a.safetensors",
                    {{"w", test::uniform({3, 5})}, {"b", test::uniform({5}, {.dtype = DType::bf16})}});
  const std::string whole = read_text(folder / "a.safetensors");
  EXPECT_EQ(error_for(whole), "no error");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(error_for(whole.substr(0, size)), "no error") << size << " of " << whole.size();
  }
  EXPECT_EQ(error_for(whole + "x"), "71 bytes of data, the tensors cover 70");
}

TEST(Safetensors, WriteErrorsLeaveNothing) {
  TempFolder folder;
  const auto path = folder / "a.safetensors";
  const auto error_writing = [&](const NamedTensors& tensors, const Metadata& metadata = {}) {
    return error_of([&] { write_safetensors(path, tensors, metadata); });
  };
  const std::string where = "[safetensors] " + path.string() + ": ";
  const Tensor x = ones({2});
  EXPECT_EQ(error_writing({{"a", x}, {"b", x}, {"a", full({3}, 1, {.dtype = DType::i8})}}),
            where + "two tensors are named 'a'");
  EXPECT_EQ(error_writing({{"a", Tensor()}}), where + "tensor 'a' is undefined");
  EXPECT_EQ(error_writing({{"__metadata__", x}}), where + "a tensor cannot be named '__metadata__'");
  EXPECT_EQ(error_writing({{"\xff", x}}), where + "a name or metadata string is not UTF-8");
  EXPECT_TRUE(folder.names().empty());
}

TEST(Safetensors, ReadsShardedModels) {
  TempFolder folder;
  const NamedTensors all = samples();
  const std::size_t half = all.size() / 2;
  write_safetensors(folder / "model-00001-of-00002.safetensors", {all.begin(), all.begin() + half});
  write_safetensors(folder / "model-00002-of-00002.safetensors", {all.begin() + half, all.end()});
  std::string map;
  for (std::size_t i = 0; i < all.size(); ++i) {
    map += fmt::format("{}\"{}\": \"model-0000{}-of-00002.safetensors\"", i > 0 ? ", " : "", all[i].first,
                       i < half ? 1 : 2);
  }
  const auto index = folder / "model.safetensors.index.json";
  write_text(index, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {" + map + "}}");
  expect_same(read_safetensors(folder.path()), all);
  expect_same(read_safetensors(index), all);

  std::filesystem::remove(folder / "model-00002-of-00002.safetensors");
  EXPECT_EQ(error_of([&] { read_safetensors(index); }),
            "[io] cannot open '" + folder.string()
                + "/model-00002-of-00002.safetensors': No such file or directory");
  write_text(index, R"({"weight_map": {"t": "model-00001-of-00002.safetensors"}})");
  EXPECT_EQ(error_of([&] { read_safetensors(index); }),
            "[safetensors] " + folder.string() + "/model-00001-of-00002.safetensors: no tensor 't' among 6");
  std::filesystem::remove(index);
  EXPECT_EQ(
      error_of([&] { read_safetensors(folder.path()); }),
      "[safetensors] " + folder.string() + " has neither model.safetensors nor model.safetensors.index.json");
  write_safetensors(folder / "model.safetensors", all);
  expect_same(read_safetensors(folder.path()), all);
}

TEST(Safetensors, IndexErrors) {
  const auto error_in = [](std::string_view text) {
    return error_of([&] { parse_safetensors_index(text, "i.json"); });
  };
  EXPECT_EQ(error_in("{}"), "[safetensors] i.json: no object \"weight_map\"");
  EXPECT_EQ(error_in("[]"), "[safetensors] i.json: no object \"weight_map\"");
  EXPECT_EQ(error_in(R"({"weight_map": {"w": 1}})"),
            "[safetensors] i.json: the file of tensor 'w' must be a string, got 'number'");
  for (const char* name : {"../w.safetensors", "/etc/passwd", "", "."}) {
    EXPECT_EQ(error_in(fmt::format(R"({{"weight_map": {{"w": "{}"}}}})", name)),
              fmt::format("[safetensors] i.json: tensor 'w' is in '{}', expected a file name without folders",
                          name));
  }
}

}  // namespace
}  // namespace ergon::io
