#include <cstring>

#include "program.h"

namespace simgpu {
namespace {

struct Wrapper {
  u32 magic, version;
  const void* data;
  void* extra;
};
struct Header {
  u32 magic;
  u16 version, header_size;
  u64 size;
};
struct Entry {
  u16 kind, version;
  u32 header_size;
  u64 payload_size;
  u32 compressed_size, options;
  u16 minor, major;
  u32 arch, name_offset, name_length;
  u64 flags, zero, uncompressed_size;
};
static_assert(sizeof(Entry) == 64);

constexpr u32 kWrapperMagic = 0x466243b1, kHeaderMagic = 0xBA55ED50;
constexpr u64 kCompressed = 0x2000 | 0x8000;  // lz4, zstd
constexpr u32 kNewestArch = 80;
constexpr const char* kAdvice = "compile with: nvcc -no-compress -gencode arch=compute_80,code=compute_80";

}  // namespace

std::string extract_ptx(const void* fat_binary_wrapper) {
  const auto* wrapper = static_cast<const Wrapper*>(fat_binary_wrapper);
  const auto* header = static_cast<const Header*>(wrapper->data);
  if (wrapper->magic != kWrapperMagic || header->magic != kHeaderMagic) throw PtxError("not a CUDA fat binary");
  const char* cursor = reinterpret_cast<const char*>(header) + header->header_size;
  const char* end = cursor + header->size;
  std::string ptx;
  u32 best = 0;
  std::string problem = std::string("the fat binary holds no PTX; ") + kAdvice;
  while (cursor < end) {
    const auto* entry = reinterpret_cast<const Entry*>(cursor);
    const char* payload = cursor + entry->header_size;
    if (entry->kind == 1) {
      if (entry->flags & kCompressed) {
        problem = std::string("the PTX in the fat binary is compressed; ") + kAdvice;
      } else if (entry->arch > kNewestArch) {
        problem = "the PTX is for sm_" + std::to_string(entry->arch) + ", newer than sm_80; " + kAdvice;
      } else if (entry->arch > best) {
        best = entry->arch;
        ptx.assign(payload, strnlen(payload, entry->payload_size));
      }
    }
    cursor = payload + entry->payload_size;
  }
  if (ptx.empty()) {
    const char* names = "";
    throw PtxError(problem + names);
  }
  return ptx;
}

}  // namespace simgpu
