#pragma once
// Simulated device memory: one reserved address range, one shadow byte for each byte of it.
#include <cstddef>
#include <cstdint>
#include <string>

namespace simgpu {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

enum Shadow : u8 { kUnallocated = 0, kUninitialised = 1, kInitialised = 2, kFreed = 3, kPending = 4 };

struct Allocation {
  u64 base = 0, size = 0;
  bool freed = false;
  const char* kind = "global";
};

// Returns nullptr when the range is exhausted. Freed memory is never handed out again, so that a use after free shows.
void* device_malloc(size_t size, const char* kind, Shadow state);
bool device_free(void* pointer);            // false: not a live allocation
bool find_allocation(u64 address, Allocation* out);  // also freed ones; nearest below the address
std::string describe_address(u64 address);
size_t report_leaks();                      // prints live cudaMalloc allocations, returns their number

extern u8* arena_base;
extern u8* arena_shadow;
constexpr u64 kArenaSize = u64{1} << 38;

inline bool in_arena(u64 address, u64 size) {
  const u64 offset = address - reinterpret_cast<u64>(arena_base);
  return offset < kArenaSize && size <= kArenaSize - offset;
}
inline u8* shadow_of(u64 address) { return arena_shadow + (address - reinterpret_cast<u64>(arena_base)); }

}  // namespace simgpu
