// Any bytes as a .safetensors file: opened or refused, and every tensor readable.

#include "models/io/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ergon;
  fuzz::expect_value_or_error([&] {
    const auto bytes = std::make_shared<std::vector<std::byte>>(fuzz::as_bytes(data, size));
    const io::SafetensorsFile file(*bytes, bytes, "input");
    for (const auto& [name, tensor] : file.tensors()) {
      if (!tensor.is_contiguous() || !file.contains(name)) std::abort();
      if (tensor.numel() == 0) continue;
      fuzz::touch(
          {static_cast<const std::byte*>(tensor.data_ptr()), static_cast<std::size_t>(tensor.nbytes())});
    }
  });
  return 0;
}
