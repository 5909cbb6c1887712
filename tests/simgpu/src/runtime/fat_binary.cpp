#include "runtime/fat_binary.h"

#include <cstring>
#include <functional>

#include <elf.h>

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
constexpr u16 kPtx = 1, kMachineCode = 2;
constexpr u32 kNewestArch = 80;
constexpr const char* kFlags = "compile with -no-compress -gencode arch=compute_80,code=compute_80";

void each_entry(const void* wrapper, const std::function<void(const Entry&, const char* payload)>& visit) {
  Wrapper w;
  std::memcpy(&w, wrapper, sizeof w);
  if (w.magic != kWrapperMagic)
    throw PtxError("simulated GPU: the fat binary is not of a kind that can be read");
  Header header;
  std::memcpy(&header, w.data, sizeof header);
  if (header.magic != kHeaderMagic)
    throw PtxError("simulated GPU: the fat binary is not of a kind that can be read");
  const char* at = w.data + header.header_bytes;
  for (const char* const end = at + header.bytes; at + sizeof(Entry) <= end;) {
    Entry e;
    std::memcpy(&e, at, sizeof e);
    if (e.header_bytes == 0 || at + e.header_bytes + e.payload_bytes > end) break;
    visit(e, at + e.header_bytes);
    at += e.header_bytes + e.payload_bytes;
  }
}

}  // namespace

std::string_view extract_ptx(const void* wrapper) {
  std::string_view found;
  std::string problem = "it holds no PTX";
  u32 found_arch = 0;
  each_entry(wrapper, [&](const Entry& e, const char* payload) {
    if (e.kind != kPtx) return;
    if (e.compressed_bytes != 0 || e.uncompressed_bytes != 0) {
      if (found.empty()) problem = "its PTX is compressed";
    } else if (e.arch > kNewestArch) {
      if (found.empty())
        problem = "its PTX is for compute_" + std::to_string(e.arch)
                  + ", newer than the compute_80 that is simulated";
    } else if (e.arch >= found_arch) {
      found = {payload, e.payload_bytes};
      found_arch = e.arch;
    }
  });
  if (found.empty())
    throw PtxError("simulated GPU: the fat binary cannot be used: " + problem + "; " + kFlags);
  return found;
}

// ptxas writes the registers into the upper byte of sh_info of a kernel's section, ".text." and its name.
std::map<std::string, int> extract_registers(const void* wrapper) {
  std::map<std::string, int> registers;
  each_entry(wrapper, [&](const Entry& e, const char* elf) {
    if (e.kind != kMachineCode || e.arch != kNewestArch || e.compressed_bytes != 0
        || e.uncompressed_bytes != 0)
      return;
    Elf64_Ehdr header;
    if (e.payload_bytes < sizeof header || std::memcmp(elf, ELFMAG, SELFMAG) != 0) return;
    std::memcpy(&header, elf, sizeof header);
    if (header.e_shoff + u64{header.e_shnum} * sizeof(Elf64_Shdr) > e.payload_bytes
        || header.e_shstrndx >= header.e_shnum)
      return;
    const auto section = [&](u32 index) {
      Elf64_Shdr s;
      std::memcpy(&s, elf + header.e_shoff + index * sizeof s, sizeof s);
      return s;
    };
    const Elf64_Shdr names = section(header.e_shstrndx);
    if (names.sh_offset + names.sh_size > e.payload_bytes) return;
    for (u32 i = 0; i < header.e_shnum; ++i) {
      const Elf64_Shdr s = section(i);
      if (s.sh_name >= names.sh_size) continue;
      const char* const text = elf + names.sh_offset + s.sh_name;
      const std::string name(text, strnlen(text, names.sh_size - s.sh_name));
      if (name.starts_with(".text.")) registers[name.substr(6)] = static_cast<int>(s.sh_info >> 24);
    }
  });
  return registers;
}

}  // namespace simgpu
