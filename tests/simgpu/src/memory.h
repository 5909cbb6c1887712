#pragma once
// Simulated device memory: one reserved address range, in which device pointers are addresses that the host
// can dereference too, and one shadow byte for each byte of it.
#include <optional>
#include <string>
#include <vector>

#include "types.h"

namespace simgpu {

enum Shadow : u8 { kUnallocated = 0, kUninitialised = 1, kInitialised = 2, kFreed = 3 };

enum class MemoryKind : u8 { kDevice, kPool, kManaged, kPinnedHost, kVariable };

struct Allocation {
  u64 base = 0, size = 0;
  u64 id = 0;  // 1, 2, ... in order of allocation
  MemoryKind kind = MemoryKind::kDevice;
  int device = 0;
  bool live = true;
  bool dropped = false;  // freed, and its pages given back to the operating system
  bool freeing = false;  // a stream will free it
  u64 open_to = 0;       // kPool: the other devices that may access it, a bit each
  std::string label;     // "cudaMalloc #17", "__device__ variable table"
};

namespace memory {

constexpr u64 kReservedBytes = u64{1} << 38;
// Made by the first allocation; before it no address is device memory.
struct Ranges {
  u64 start = u64{1} << 63;  // address of the reserved range
  u8* shadows = nullptr;     // of the byte at start + i: shadows[i]
  // For the detector of global races: the cell of the byte at start + i is cells[i >> s], with one s a
  // launch, that of its 32-byte sector sectors[i >> 5].
  u64 *cells = nullptr, *sectors = nullptr;
  u8* owners = nullptr;  // of the page of 4 KiB with the byte at start + i: owners[i >> 12]
};
inline Ranges ranges;
// Of each device the others whose memory its kernels may access, a bit each. Guarded by the context's mutex.
inline u64 peers[64] = {};

inline bool contains(u64 address, u64 size) {
  const u64 offset = address - ranges.start;
  return offset < kReservedBytes && size <= kReservedBytes - offset;
}
inline u8* shadow(u64 address) { return ranges.shadows + (address - ranges.start); }

// A multiple of 256 that is no multiple of 512, with at least a page that is unallocated behind it. nullptr
// when the reserved range is spent. Addresses of freed memory are handed out again only after a thousand
// further allocations, or 32 MiB of them, have been freed, so that a use after free shows.
void* allocate(u64 size, MemoryKind kind, int device, Shadow state, std::string label);
bool release(void* pointer);  // false: not the start of a live allocation
// The live or freed allocation at or nearest below the address.
std::optional<Allocation> nearest(u64 address);
std::string describe(u64 address);  // "12 bytes past the end of cudaMalloc #17 (4096 bytes at 0x..)"
bool is_freed(u64 address);
// The first byte of a range of device memory that is not allocated now, or that has been freed.
std::optional<u64> first_inaccessible(u64 address, u64 size);
// Whether kernels of the device may access the memory: it is theirs, the host's, or opened to them.
bool reachable(u64 address, int device);
void set_open_to(const void* pointer, u64 devices);  // of a live allocation
void set_freeing(const void* pointer);
u64 live_bytes(int device);  // pinned host memory and variables are not counted
std::vector<Allocation> live_allocations();

// Memory of the process that cudaHostRegister has made accessible: no shadow, always initialised.
bool add_registered(u64 address, u64 size);  // false: some of it is registered already
bool remove_registered(u64 address);         // false: not the start of a registered range
bool is_registered(u64 address, u64 size);

}  // namespace memory
}  // namespace simgpu
