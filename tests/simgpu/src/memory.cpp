#include "memory.h"

#include <array>
#include <cstdio>
#include <map>
#include <mutex>

#include <sys/mman.h>

namespace simgpu::memory {
namespace {

u8* reserve(const char* what) {
  void* range = mmap(nullptr, kReservedBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) throw PtxError(std::string("simulated GPU: no address space for ") + what);
  return static_cast<u8*>(range);
}

constexpr u64 kAlignment = 256, kGap = 4096;

// Guards everything below; made before the first use, so that registration from static constructors works.
struct State {
  std::mutex mutex;
  std::map<u64, Allocation> allocations;  // by base, freed ones included
  u64 next = kGap;
  u64 ids = 0;
  std::array<u64, 64> live = {};  // bytes by device
};
State& state() {
  static auto* const s = new State;
  return *s;
}

}  // namespace

u8* base() {
  static u8* const range = reserve("device memory");
  return range;
}
u8* shadows() {
  static u8* const range = reserve("the state of device memory");
  return range;
}

void* allocate(u64 size, MemoryKind kind, int device, Shadow fill, std::string label) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const u64 room = (std::max<u64>(size, 1) + kAlignment - 1) / kAlignment * kAlignment + kGap;
  if (room > kReservedBytes - s.next) return nullptr;
  const u64 offset = s.next;
  s.next += room;
  const u64 address = reinterpret_cast<u64>(base()) + offset;
  std::fill_n(shadows() + offset, size, static_cast<u8>(fill));
  s.allocations[address] = {address, size, ++s.ids, kind, device, true, std::move(label)};
  s.live.at(static_cast<size_t>(device)) += size;
  return reinterpret_cast<void*>(address);
}

bool release(void* pointer) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto found = s.allocations.find(reinterpret_cast<u64>(pointer));
  if (found == s.allocations.end() || !found->second.live) return false;
  Allocation& a = found->second;
  a.live = false;
  s.live.at(static_cast<size_t>(a.device)) -= a.size;
  std::fill_n(shadow(a.base), a.size, static_cast<u8>(kFreed));
  const u64 first = (a.base + 4095) / 4096 * 4096, last = (a.base + a.size) / 4096 * 4096;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  return true;
}

std::optional<Allocation> nearest(u64 address) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  auto after = s.allocations.upper_bound(address);
  if (after == s.allocations.begin()) return std::nullopt;
  return std::prev(after)->second;
}

std::string describe(u64 address) {
  const std::optional<Allocation> a = nearest(address);
  if (!a) return "not near any allocation";
  char range[64];
  std::snprintf(range, sizeof range, " (%llu bytes at 0x%llx)", static_cast<unsigned long long>(a->size),
                static_cast<unsigned long long>(a->base));
  const std::string what = a->label + range + (a->live ? "" : ", which has been freed");
  const u64 offset = address - a->base;
  if (offset < a->size) return "byte " + std::to_string(offset) + " of " + what;
  return std::to_string(offset - a->size) + " bytes past the end of " + what;
}

std::vector<Allocation> live_allocations() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  std::vector<Allocation> list;
  for (const auto& [address, a] : s.allocations) {
    if (a.live) list.push_back(a);
  }
  return list;
}

u64 live_bytes(int device) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.live.at(static_cast<size_t>(device));
}

}  // namespace simgpu::memory
