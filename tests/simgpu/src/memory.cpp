#include "memory.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include <sys/mman.h>

namespace simgpu::memory {
namespace {

void* reserve(u64 bytes, bool huge_pages, const char* what) {
  void* range =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) throw PtxError(std::string("simulated GPU: no address space for ") + what);
  if (huge_pages) madvise(range, bytes, MADV_HUGEPAGE);  // strided accesses miss fewer address translations
  return range;
}
Ranges reserve_all() {
  // Few cells are used, here and there: the system would spend most of a short program on clearing huge pages
  // of them.
  return {reinterpret_cast<u64>(reserve(kReservedBytes, true, "device memory")),
          static_cast<u8*>(reserve(kReservedBytes, true, "the state of device memory")),
          static_cast<u64*>(reserve(kReservedBytes * sizeof(u64), false, "the race detector")),
          static_cast<u64*>(reserve(kReservedBytes / 32 * sizeof(u64), true, "the race detector")),
          static_cast<u8*>(reserve(kReservedBytes >> 12, false, "the owners of device memory"))};
}

// Every allocation has pages of its own, a slot, in which it starts behind kOffset bytes.
constexpr u64 kPage = 4096, kOffset = 256, kGap = kPage;
// Freed slots wait this long before their addresses are used again ...
constexpr size_t kMostWaiting = 1024;
// ... and no longer than the pages that they keep are this many bytes in all: with what is known of each byte
// they take several times as much memory, which the operating system clears when it is first used.
constexpr u64 kMostKept = u64{32} << 20;
// The pages of larger slots are given back at once.
constexpr u64 kLargestKept = u64{32} << 20;

// Slots come in eight sizes a power of two, so that one that is free fits often.
u64 slot_bytes(u64 size) {
  const u64 pages = (kOffset + size + kGap + kPage - 1) / kPage;
  const int shift = std::max(0, static_cast<int>(std::bit_width(pages)) - 4);
  return ((pages + (u64{1} << shift) - 1) >> shift << shift) * kPage;
}

// Guards everything below; made before the first use, so that registration from static constructors works,
// and never destroyed, so that static destructors may free.
struct State {
  std::mutex mutex;
  std::map<u64, Allocation> allocations;  // by base; freed ones until their slot is used again
  std::map<u64, std::vector<u64>> free;   // offsets of free slots, by size
  std::deque<u64> waiting;                // bases of freed allocations, oldest first
  u64 kept = 0;                           // bytes of waiting slots that keep their pages
  u64 next = kPage;
  u64 ids = 0;
  std::array<u64, 64> live = {};  // bytes by device
  std::map<u64, u64> registered;  // size by address
};
State& state() {
  static auto* const s = new State;
  return *s;
}

u64 offset_of(u64 address) { return address - ranges.start; }

bool counts(const Allocation& a) {
  return a.kind != MemoryKind::kPinnedHost && a.kind != MemoryKind::kVariable;
}

// The pages of a slot and of what is known about it; they read as zero from now on.
void drop_pages(u64 offset, u64 bytes) {
  madvise(reinterpret_cast<void*>(ranges.start + offset), bytes, MADV_DONTNEED);
  madvise(ranges.shadows + offset, bytes, MADV_DONTNEED);
  for (const int shift : {4, 3, 2, 1, 0})
    madvise(ranges.cells + (offset >> shift), (bytes >> shift) * sizeof(u64), MADV_DONTNEED);
  // Of sectors a page is 16 KiB of memory: what is beside the slot stays.
  const u64 first = (offset + 4 * kPage - 1) / (4 * kPage), end = (offset + bytes) / (4 * kPage);
  if (first < end)
    madvise(reinterpret_cast<u8*>(ranges.sectors) + first * kPage, (end - first) * kPage, MADV_DONTNEED);
}

void retire_oldest(State& s) {
  const auto found = s.allocations.find(s.waiting.front());
  s.waiting.pop_front();
  const Allocation& a = found->second;
  const u64 bytes = slot_bytes(a.size);
  if (!a.dropped) {
    s.kept -= bytes;
    std::fill_n(shadow(a.base), a.size, static_cast<u8>(kUnallocated));
  }
  s.free[bytes].push_back(offset_of(a.base) - kOffset);
  s.allocations.erase(found);
}

}  // namespace

void* allocate(u64 size, MemoryKind kind, int device, Shadow fill, std::string label) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (ranges.shadows == nullptr) ranges = reserve_all();
  const u64 room = slot_bytes(size);
  u64 slot;
  if (const auto free = s.free.find(room); free != s.free.end() && !free->second.empty()) {
    slot = free->second.back();
    free->second.pop_back();
  } else {
    if (room > kReservedBytes - s.next) return nullptr;
    slot = s.next;
    s.next += room;
  }
  const u64 address = ranges.start + slot + kOffset;
  std::fill_n(shadow(address), size, static_cast<u8>(fill));
  const bool everyones = kind == MemoryKind::kPinnedHost || kind == MemoryKind::kManaged;
  std::memset(ranges.owners + slot / kPage, everyones ? 0 : device + 1, room / kPage);
  const auto added = s.allocations.insert_or_assign(address, Allocation{.base = address,
                                                                        .size = size,
                                                                        .id = ++s.ids,
                                                                        .kind = kind,
                                                                        .device = device,
                                                                        .label = std::move(label)});
  if (counts(added.first->second)) s.live.at(static_cast<size_t>(device)) += size;
  return reinterpret_cast<void*>(address);
}

bool release(void* pointer) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto found = s.allocations.find(reinterpret_cast<u64>(pointer));
  if (found == s.allocations.end() || !found->second.live) return false;
  Allocation& a = found->second;
  a.live = false;
  if (counts(a)) s.live.at(static_cast<size_t>(a.device)) -= a.size;
  const u64 bytes = slot_bytes(a.size);
  a.dropped = bytes > kLargestKept;
  if (a.dropped) {
    drop_pages(offset_of(a.base) - kOffset, bytes);
  } else {
    std::fill_n(shadow(a.base), a.size, static_cast<u8>(kFreed));
    s.kept += bytes;
  }
  s.waiting.push_back(a.base);
  while (s.waiting.size() > kMostWaiting || s.kept > kMostKept) retire_oldest(s);
  return true;
}

std::optional<Allocation> nearest(u64 address) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  auto after = s.allocations.upper_bound(address);
  if (after == s.allocations.begin()) return std::nullopt;
  return std::prev(after)->second;
}

bool is_freed(u64 address) {
  const std::optional<Allocation> a = nearest(address);
  return a && !a->live && address < a->base + a->size;
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

bool reachable(u64 address, int device) {
  const u8 owner = ranges.owners[offset_of(address) / kPage];
  if (owner == 0 || owner == device + 1) return true;
  const std::optional<Allocation> a = nearest(address);
  if (a && a->kind == MemoryKind::kPool) return (a->open_to >> device & 1) != 0;
  return (peers[device] >> (owner - 1) & 1) != 0;
}
void set_open_to(const void* pointer, u64 devices) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.allocations.at(reinterpret_cast<u64>(pointer)).open_to = devices;
}
void set_freeing(const void* pointer) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.allocations.at(reinterpret_cast<u64>(pointer)).freeing = true;
}

std::optional<u64> first_inaccessible(u64 address, u64 size) {
  const u8* const state = shadow(address);
  const auto accessible = [](u8 s) { return s == kInitialised || s == kUninitialised; };
  u8 all = 1;
  for (u64 i = 0; i < size; ++i) all &= static_cast<u8>(accessible(state[i]));
  if (all != 0) return std::nullopt;
  const u8* const first = std::find_if_not(state, state + size, accessible);
  return address + static_cast<u64>(first - state);
}

std::vector<Allocation> live_allocations() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  std::vector<Allocation> list;
  for (const auto& [address, a] : s.allocations) {
    if (a.live) list.push_back(a);
  }
  std::sort(list.begin(), list.end(), [](const Allocation& a, const Allocation& b) { return a.id < b.id; });
  return list;
}

u64 live_bytes(int device) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.live.at(static_cast<size_t>(device));
}

bool add_registered(u64 address, u64 size) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto after = s.registered.lower_bound(address);
  if (after != s.registered.end() && after->first < address + size) return false;
  if (after != s.registered.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second > address) return false;
  }
  s.registered[address] = size;
  return true;
}
bool remove_registered(u64 address) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.registered.erase(address) == 1;
}
bool is_registered(u64 address, u64 size) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto after = s.registered.upper_bound(address);
  if (after == s.registered.begin()) return false;
  const auto range = std::prev(after);
  return address + size <= range->first + range->second;
}

}  // namespace simgpu::memory
