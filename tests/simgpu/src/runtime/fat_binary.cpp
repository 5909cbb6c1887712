#include "runtime/fat_binary.h"

#include <cstring>

#include "types.h"

namespace simgpu {
namespace {

struct Wrapper {
  u32 magic, version;
  const char* data;
  const void* extra;
};
struct Header {
  u32 magic;
  u16 version, header_bytes;
  u64 bytes;  // after the header
};
struct Entry {
  u16 kind, version;
  u32 header_bytes;
  u64 payload_bytes;
  u32 compressed_bytes, reserved;
  u16 minor, major;
  u32 arch, name_offset, name_bytes;
  u64 flags, zero, uncompressed_bytes;
};
constexpr u32 kWrapperMagic = 0x466243b1, kHeaderMagic = 0xba55ed50;
constexpr u16 kPtx = 1;
constexpr u32 kNewestArch = 80;
constexpr const char* kFlags = "compile with -no-compress -gencode arch=compute_80,code=compute_80";

}  // namespace

std::string extract_ptx(const void* wrapper) {
  Wrapper w;
  std::memcpy(&w, wrapper, sizeof w);
  if (w.magic != kWrapperMagic)
    throw PtxError("simulated GPU: the fat binary is not of a kind that can be read");
  Header header;
  std::memcpy(&header, w.data, sizeof header);
  if (header.magic != kHeaderMagic)
    throw PtxError("simulated GPU: the fat binary is not of a kind that can be read");
  std::string found, problem = "it holds no PTX";
  u32 found_arch = 0;
  const char* at = w.data + header.header_bytes;
  for (const char* const end = at + header.bytes; at + sizeof(Entry) <= end;) {
    Entry e;
    std::memcpy(&e, at, sizeof e);
    if (e.header_bytes == 0 || at + e.header_bytes + e.payload_bytes > end) break;
    if (e.kind == kPtx) {
      if (e.compressed_bytes != 0 || e.uncompressed_bytes != 0) {
        if (found.empty()) problem = "its PTX is compressed";
      } else if (e.arch > kNewestArch) {
        if (found.empty())
          problem = "its PTX is for compute_" + std::to_string(e.arch)
                    + ", newer than the compute_80 that is simulated";
      } else if (e.arch >= found_arch) {
        found.assign(at + e.header_bytes, e.payload_bytes);
        found_arch = e.arch;
      }
    }
    at += e.header_bytes + e.payload_bytes;
  }
  if (found.empty())
    throw PtxError("simulated GPU: the fat binary cannot be used: " + problem + "; " + kFlags);
  return found;
}

}  // namespace simgpu
