#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

namespace simgpu {

u8* arena_base = nullptr;
u8* arena_shadow = nullptr;

namespace {

constexpr u64 kAlignment = 256;  // what cudaMalloc promises
constexpr u64 kRedZone = 256;    // unallocated bytes after each allocation

struct Arena {
  std::mutex mutex;
  std::map<u64, Allocation> allocations;
  u64 next = 0;
};

// Never destroyed: host code may free device memory from its own static destructors.
Arena& arena() {
  static Arena* instance = [] {
    auto reserve = [](u64 size) {
      void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      return p == MAP_FAILED ? nullptr : static_cast<u8*>(p);
    };
    arena_base = reserve(kArenaSize);
    arena_shadow = reserve(kArenaSize);
    return new Arena;
  }();
  return *instance;
}

}  // namespace

void* device_malloc(size_t size, const char* kind, Shadow state) {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  const u64 step = (size + kAlignment - 1) / kAlignment * kAlignment + kRedZone;
  if (!arena_base || !arena_shadow || size > kArenaSize || a.next + step > kArenaSize) return nullptr;
  u8* base = arena_base + a.next;
  memset(arena_shadow + a.next, state, size);
  a.next += step;
  a.allocations[reinterpret_cast<u64>(base)] = {reinterpret_cast<u64>(base), size, false, kind};
  return base;
}

bool device_free(void* pointer) {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  auto it = a.allocations.find(reinterpret_cast<u64>(pointer));
  if (it == a.allocations.end() || it->second.freed) return false;
  it->second.freed = true;
  memset(shadow_of(it->first), kFreed, it->second.size);
  const u64 page = 4096, first = (it->first + page - 1) / page * page, last = (it->first + it->second.size) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  return true;
}

bool find_allocation(u64 address, Allocation* out) {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  auto it = a.allocations.upper_bound(address);
  if (it == a.allocations.begin()) return false;
  *out = std::prev(it)->second;
  return true;
}

std::string describe_address(u64 address) {
  Allocation a;
  char text[256];
  if (!in_arena(address, 1) || !find_allocation(address, &a)) {
    snprintf(text, sizeof text, "address 0x%llx belongs to no device allocation", (unsigned long long)address);
  } else {
    const u64 offset = address - a.base;
    snprintf(text, sizeof text, "address 0x%llx is %llu bytes %s a %s allocation of %llu bytes%s",
             (unsigned long long)address, (unsigned long long)(offset < a.size ? offset : offset - a.size),
             offset < a.size ? "into" : "after the end of", a.kind, (unsigned long long)a.size,
             a.freed ? ", which has been freed" : "");
  }
  return text;
}

size_t report_leaks() {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  size_t count = 0;
  for (const auto& [base, one] : a.allocations) {
    if (one.freed || strcmp(one.kind, "global") != 0) continue;
    fprintf(stderr, "[simgpu] leak: %llu bytes at 0x%llx were never freed\n", (unsigned long long)one.size,
            (unsigned long long)base);
    ++count;
  }
  return count;
}

}  // namespace simgpu
