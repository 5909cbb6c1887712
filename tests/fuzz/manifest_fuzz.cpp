// Any text as a checkpoint's manifest.json, as it is and with the checksum put right.

#include "models/io/checkpoint.h"
#include "tests/fuzz/fuzz.h"

namespace {

void parse(std::string_view text) {
  using namespace ergon;
  fuzz::expect_value_or_error([&] {
    const io::Manifest manifest = io::parse_manifest(text, "input");
    const std::string written = io::to_text(manifest);
    if (io::to_text(io::parse_manifest(written, "written")) != written) std::abort();
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = ergon::fuzz::as_text(data, size);
  parse(text);
  const std::string sum = ergon::io::to_hex(ergon::io::checksum(text.data(), text.size()));
  parse(fmt::format("{},\n  \"xxh3\": \"{}\"\n}}\n", text, sum));
  return 0;
}
