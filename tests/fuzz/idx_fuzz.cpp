// Any bytes as an IDX file: the first byte tells whether the rest is the file, or is compressed first, which
// brings the fuzzer past gzip's checksum.

#include <zlib.h>

#include "models/data/idx.h"
#include "tests/fuzz/fuzz.h"

namespace {

std::vector<std::byte> gzip(std::vector<std::byte> data) {
  z_stream stream{};
  constexpr int kGzipWindow = 15 + 16;
  if (deflateInit2(&stream, 1, Z_DEFLATED, kGzipWindow, 8, Z_DEFAULT_STRATEGY) != Z_OK) std::abort();
  std::vector<std::byte> packed(deflateBound(&stream, data.size()) + 32);
  stream.next_in = reinterpret_cast<Bytef*>(data.data());
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  if (deflate(&stream, Z_FINISH) != Z_STREAM_END) std::abort();
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ergon;
  if (size == 0) return 0;
  std::vector<std::byte> file = fuzz::as_bytes(data + 1, size - 1);
  if (data[0] % 2 == 1) file = gzip(std::move(file));
  fuzz::expect_value_or_error([&] {
    const Tensor tensor = data::parse_idx(file, "input");
    if (tensor.dtype() != DType::u8 || tensor.numel() < 1) std::abort();
    fuzz::touch(
        {static_cast<const std::byte*>(tensor.data_ptr()), static_cast<std::size_t>(tensor.nbytes())});
  });
  return 0;
}
