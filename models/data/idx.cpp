#include "models/data/idx.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include <zlib.h>

#include "core/error.h"
#include "models/io/mapped_file.h"

namespace ergon::data {
namespace {

using Bytes = std::span<const std::byte>;

// Bytes one after the other, plain or unpacked.
class Reader {
 public:
  virtual ~Reader() = default;
  // Fills `out` as far as there is data; how many bytes that was.
  virtual std::size_t read(std::span<std::byte> out) = 0;
  // No more than this can be left to read.
  virtual std::uint64_t max_left() const = 0;
};

class PlainReader final : public Reader {
 public:
  explicit PlainReader(Bytes bytes) : left_(bytes) {}
  std::size_t read(std::span<std::byte> out) override {
    const std::size_t count = std::min(out.size(), left_.size());
    if (count > 0) std::memcpy(out.data(), left_.data(), count);
    left_ = left_.subspan(count);
    return count;
  }
  std::uint64_t max_left() const override { return left_.size(); }

 private:
  Bytes left_;
};

class GzipReader final : public Reader {
 public:
  GzipReader(Bytes bytes, std::string_view name) : left_(bytes), name_(name) {
    constexpr int kGzipWindow = 15 + 16;  // 32 KiB, gzip header and trailer (zlib's manual, inflateInit2)
    ERGON_CHECK(inflateInit2(&stream_, kGzipWindow) == Z_OK, "[idx] {}: zlib cannot start: {}", name_,
                message());
  }
  ~GzipReader() override { inflateEnd(&stream_); }
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;

  std::size_t read(std::span<std::byte> out) override {
    constexpr std::size_t kMaxPiece = std::size_t{1} << 30;  // zlib counts in 32 bits
    std::size_t produced = 0;
    while (produced < out.size() && !ended_) {
      const std::size_t room = std::min(out.size() - produced, kMaxPiece);
      const std::size_t offered = std::min(left_.size(), kMaxPiece);
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(left_.data()));
      stream_.avail_in = static_cast<uInt>(offered);
      stream_.next_out = reinterpret_cast<Bytef*>(out.data() + produced);
      stream_.avail_out = static_cast<uInt>(room);
      const int result = inflate(&stream_, Z_NO_FLUSH);
      left_ = left_.subspan(offered - stream_.avail_in);
      produced += room - stream_.avail_out;
      if (result == Z_STREAM_END) {
        ended_ = true;
        ERGON_CHECK(left_.empty(), "[idx] {}: {} bytes after the end of the gzip data", name_, left_.size());
      } else if (result == Z_BUF_ERROR || (result == Z_OK && left_.empty() && stream_.avail_out > 0)) {
        ERGON_FAIL("[idx] {}: truncated gzip data", name_);
      } else {
        ERGON_CHECK(result == Z_OK, "[idx] {}: damaged gzip data: {}", name_, message());
      }
    }
    return produced;
  }
  std::uint64_t max_left() const override {
    constexpr std::uint64_t kMaxRatio = 1032;                  // of deflate
    constexpr std::uint64_t kWindow = std::uint64_t{1} << 20;  // what zlib may hold back, generously
    return left_.size() * kMaxRatio + kWindow;
  }

 private:
  const char* message() const { return stream_.msg != nullptr ? stream_.msg : "no reason given"; }

  Bytes left_;
  std::string name_;
  z_stream stream_{};
  bool ended_ = false;
};

Shape read_header(Reader& reader, std::string_view name) {
  constexpr int kUnsignedByte = 0x08;
  constexpr int kMaxDims = 4;
  std::array<std::uint8_t, 4> magic{};
  const std::size_t read = reader.read(std::as_writable_bytes(std::span(magic)));
  ERGON_CHECK(read == magic.size(), "[idx] {}: {} bytes, expected at least {}", name, read, magic.size());
  ERGON_CHECK(magic[0] == 0 && magic[1] == 0,
              "[idx] {}: begins with {:02x} {:02x}, expected 00 00: not an IDX file", name, magic[0],
              magic[1]);
  ERGON_CHECK(magic[2] == kUnsignedByte, "[idx] {}: element type {:02x}, expected {:02x} (unsigned byte)",
              name, magic[2], kUnsignedByte);
  ERGON_CHECK(1 <= magic[3] && magic[3] <= kMaxDims, "[idx] {}: {} dimensions, expected 1 to {}", name,
              magic[3], kMaxDims);
  Shape shape;
  for (int dim = 0; dim < magic[3]; ++dim) {
    std::array<std::uint8_t, 4> size{};
    ERGON_CHECK(reader.read(std::as_writable_bytes(std::span(size))) == size.size(),
                "[idx] {}: truncated: it ends within the size of dimension {} of {}", name, dim, magic[3]);
    shape.push_back((std::int64_t{size[0]} << 24) | (size[1] << 16) | (size[2] << 8) | size[3]);
    ERGON_CHECK(shape.back() > 0, "[idx] {}: dimension {} has size 0", name, dim);
  }
  return shape;
}

Tensor read_array(Reader& reader, std::string_view name) {
  const Shape shape = read_header(reader, name);
  std::uint64_t count = 1;
  for (const std::int64_t size : shape) {
    const bool overflow = __builtin_mul_overflow(count, static_cast<std::uint64_t>(size), &count);
    // Checked before anything of that size is allocated.
    ERGON_CHECK(!overflow && count <= reader.max_left(),
                "[idx] {}: truncated: shape {} needs more bytes than the file holds", name, shape);
  }
  Tensor tensor = empty(shape, {.dtype = DType::u8});
  const std::size_t read = reader.read({static_cast<std::byte*>(tensor.data_ptr()), count});
  ERGON_CHECK(read == count, "[idx] {}: truncated: shape {} needs {} bytes of data, the file has {}", name,
              shape, count, read);
  std::byte surplus{};
  ERGON_CHECK(reader.read({&surplus, 1}) == 0, "[idx] {}: data after the {} bytes of shape {}", name, count,
              shape);
  return tensor;
}

}  // namespace

Tensor parse_idx(Bytes bytes, std::string_view name) {
  const bool gzip = bytes.size() >= 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b};
  if (!gzip) {
    PlainReader reader(bytes);
    return read_array(reader, name);
  }
  GzipReader reader(bytes, name);
  return read_array(reader, name);
}

Tensor read_idx(const std::filesystem::path& path) {
  const io::MappedFile file(path);
  return parse_idx(file.bytes(), path.string());
}

}  // namespace ergon::data
