#include "core/allocator.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include <sys/mman.h>

#include "core/error.h"

namespace ergon {
namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kLargeBlock = 1 << 20;  // from here on: mapped pages, huge where the system has them
constexpr std::int64_t kHugePage = 2 << 20;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Sizes are rounded to one of eight steps between powers of two, so that freed blocks fit later requests.
std::int64_t rounded_size(std::int64_t bytes) {
  if (bytes <= 8 * kAlignment) return std::max(round_up(bytes, kAlignment), kAlignment);
  const int log2 = 63 - __builtin_clzll(static_cast<unsigned long long>(bytes - 1));
  return round_up(bytes, std::int64_t{1} << std::max(log2 - 3, 6));
}

class CachingAllocator {
 public:
  void* allocate(std::int64_t bytes) {
    const std::int64_t size = rounded_size(bytes);
    std::lock_guard lock(mutex_);
    if (limit_ > 0 && stats_.current + size > limit_) throw_out_of_memory(bytes);
    void* block = take_cached(size);
    if (block == nullptr) {
      if (size >= kLargeBlock) trade_cached(size);
      block = from_system(size);
      if (block == nullptr) {
        release_cached();
        block = from_system(size);
      }
      if (block == nullptr) throw_out_of_memory(bytes);
      stats_.reserved += size;
      stats_.peak_reserved = std::max(stats_.peak_reserved, stats_.reserved);
    }
    stats_.current += size;
    stats_.peak = std::max(stats_.peak, stats_.current);
    if (size >= kLargeBlock) ++in_use_[size];
    return block;
  }

  void deallocate(void* block, std::int64_t bytes) noexcept {
    const std::int64_t size = rounded_size(bytes);
    std::lock_guard lock(mutex_);
    stats_.current -= size;
    if (size >= kLargeBlock && --in_use_[size] == 0) in_use_.erase(size);
#ifdef ERGON_DEBUG_CHECKS
    // Reuse would hide use after free from AddressSanitizer.
    to_system(block, size);
#else
    cached_[size].push_back(block);
#endif
  }

  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() {
    std::lock_guard lock(mutex_);
    stats_.peak = stats_.current;
    stats_.peak_reserved = stats_.reserved;
  }
  void empty_cache() {
    std::lock_guard lock(mutex_);
    release_cached();
  }
  void set_limit(std::int64_t bytes) {
    std::lock_guard lock(mutex_);
    limit_ = bytes;
  }

 private:
  void* take_cached(std::int64_t size) {
    const auto found = cached_.find(size);
    if (found == cached_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    return block;
  }

  // A large block of a new size takes the place of cached ones when it would lift `reserved` above its peak:
  // memory held stays close to the most that was ever in use at a time.
  void trade_cached(std::int64_t size) {
    for (auto entry = cached_.rbegin(); entry != cached_.rend() && entry->first >= kLargeBlock; ++entry) {
      while (!entry->second.empty() && stats_.reserved + size > stats_.peak_reserved) {
        to_system(entry->second.back(), entry->first);
        entry->second.pop_back();
      }
    }
  }

  void release_cached() {
    for (auto& [size, blocks] : cached_) {
      for (void* block : blocks) to_system(block, size);
    }
    cached_.clear();
  }

  static void* from_system(std::int64_t size) {
    const std::int64_t alignment = size >= kLargeBlock ? kHugePage : kAlignment;
    void* block = std::aligned_alloc(static_cast<std::size_t>(alignment),
                                     static_cast<std::size_t>(round_up(size, alignment)));
    if (block != nullptr && size >= kHugePage) madvise(block, static_cast<std::size_t>(size), MADV_HUGEPAGE);
    return block;
  }

  void to_system(void* block, std::int64_t size) noexcept {
    std::free(block);
    stats_.reserved -= size;
  }

  [[noreturn]] void throw_out_of_memory(std::int64_t bytes) {
    std::string holders;
    int listed = 0;
    for (auto entry = in_use_.rbegin(); entry != in_use_.rend() && listed < 3; ++entry, ++listed) {
      holders += fmt::format("{}{} x {} bytes", listed > 0 ? ", " : "", entry->second, entry->first);
    }
    throw OutOfMemoryError(
        fmt::format("out of memory on cpu: asked for {} bytes with {} in use{}; largest blocks in use: {}",
                    bytes, stats_.current, limit_ > 0 ? fmt::format(", limit {}", limit_) : std::string(),
                    holders.empty() ? "none of 1 MiB or more" : holders));
  }

  std::mutex mutex_;
  std::map<std::int64_t, std::vector<void*>> cached_;  // by rounded size
  std::map<std::int64_t, std::int64_t> in_use_;        // large blocks: rounded size → count
  MemoryStats stats_;
  std::int64_t limit_ = 0;
};

// Never destroyed: tensors with static lifetime may be freed after it would have been.
CachingAllocator& cpu_allocator() {
  static auto* allocator = new CachingAllocator;
  return *allocator;
}

CachingAllocator& allocator_of(Device device) {
  check_available(device);
  return cpu_allocator();
}

}  // namespace

MemoryStats memory_stats(Device device) { return allocator_of(device).stats(); }
void reset_peak_memory(Device device) { allocator_of(device).reset_peak(); }
void empty_cache(Device device) { allocator_of(device).empty_cache(); }
void set_memory_limit(std::int64_t bytes, Device device) { allocator_of(device).set_limit(bytes); }

namespace detail {

void* allocate(Device device, std::int64_t bytes) { return allocator_of(device).allocate(bytes); }

void deallocate(Device /*device*/, void* block, std::int64_t bytes) noexcept {
  cpu_allocator().deallocate(block, bytes);
}

}  // namespace detail
}  // namespace ergon
