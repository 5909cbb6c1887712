// Any text as model.safetensors.index.json: no file name in the answer may lead out of the folder.

#include "models/io/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ergon;
  fuzz::expect_value_or_error([&] {
    for (const auto& [tensor, file] : io::parse_safetensors_index(fuzz::as_text(data, size), "input")) {
      const std::filesystem::path path(file);
      if (path.empty() || path.is_absolute() || path != path.filename() || file == "..") std::abort();
    }
  });
  return 0;
}
