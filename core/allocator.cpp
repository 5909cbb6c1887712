#include "core/allocator.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include <sys/mman.h>

#include "core/cuda_backend.h"
#include "core/error.h"
#include "core/memory_ledger.h"
#include "core/op_scope.h"
#include "core/tensor_impl.h"

namespace ergon {
namespace {

using detail::MemoryLedger;

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kHugePage = 2 << 20;
constexpr std::int64_t kLargeBlock = kHugePage;  // from here on a block has pages of its own
constexpr std::int64_t kChunk = 16 * kHugePage;  // smaller blocks are cut from chunks

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Sizes are rounded to one of eight steps between powers of two, so that freed blocks fit later requests.
std::int64_t rounded_size(std::int64_t bytes) {
  if (bytes <= 8 * kAlignment) return std::max(round_up(bytes, kAlignment), kAlignment);
  const int log2 = 63 - __builtin_clzll(static_cast<unsigned long long>(bytes - 1));
  return round_up(bytes, std::int64_t{1} << std::max(log2 - 3, 6));
}

// Memory in huge pages where the system has them and `bytes` fill them: with pages of 4 KiB, matrix products
// of operands from beyond the second-level cache wait for address translations. A page is held once it has
// been written to. Null: none left.
void* map_pages(std::int64_t bytes, std::int64_t alignment) {
  void* pages = std::aligned_alloc(static_cast<std::size_t>(alignment),
                                   static_cast<std::size_t>(round_up(bytes, alignment)));
  if (pages != nullptr) madvise(pages, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
  return pages;
}

// Host memory: freed blocks are kept for requests of the same rounded size.
class CpuAllocator {
 public:
  void* allocate(std::int64_t bytes, const char* holder) {
    const std::int64_t size = rounded_size(bytes);
    ledger_.add(size, holder);
    std::lock_guard lock(mutex_);
    void* block = take_cached(size);
    if (block != nullptr) return block;
    if (size >= kLargeBlock) trade_cached(size);
    block = from_system(size);
    if (block == nullptr) {
      release_cached();
      block = from_system(size);
    }
    if (block == nullptr) {
      ledger_.remove(size, holder);
      ledger_.throw_out_of_memory(bytes, {});
    }
    reserve(size);
    return block;
  }

  void deallocate(void* block, std::int64_t bytes, const char* holder) noexcept {
    const std::int64_t size = rounded_size(bytes);
    ledger_.remove(size, holder);
    std::lock_guard lock(mutex_);
#ifdef ERGON_DEBUG_CHECKS
    // Reuse would hide use after free from AddressSanitizer.
    to_system(block, size);
#else
    cached_[size].push_back(block);
#endif
  }

  void empty_cache() {
    std::lock_guard lock(mutex_);
    release_cached();
  }
  MemoryLedger& ledger() { return ledger_; }

 private:
  void* take_cached(std::int64_t size) {
    const auto found = cached_.find(size);
    if (found == cached_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    return block;
  }

  // A large block of a new size takes the place of cached ones when `reserved` would come to lie a quarter
  // above the most that was ever in use at a time. With less to spare every training step trades again, for
  // pages that the system has to clear first.
  void trade_cached(std::int64_t size) {
    const std::int64_t peak = ledger_.stats().peak;
    const std::int64_t limit = peak + peak / 4;
    for (auto entry = cached_.rbegin(); entry != cached_.rend() && entry->first >= kLargeBlock; ++entry) {
      while (!entry->second.empty() && reserved_ + size > limit) {
        to_system(entry->second.back(), entry->first);
        entry->second.pop_back();
      }
    }
  }

  // Large blocks, and chunks of which no block is in use.
  void release_cached() {
    std::map<char*, std::int64_t> idle;  // bytes of cached blocks by chunk
    for (auto& [size, blocks] : cached_) {
      for (void* block : blocks) {
        if (size < kLargeBlock) {
          idle[chunk_of(block)] += size;
        } else {
          to_system(block, size);
        }
      }
      if (size >= kLargeBlock) blocks.clear();
    }
    std::erase_if(chunks_, [&](const Chunk& chunk) {
      if (idle[chunk.data] < chunk.used) return false;
      for (auto& [size, blocks] : cached_) {
        std::erase_if(blocks, [&](void* block) { return chunk_of(block) == chunk.data; });
      }
      to_system(chunk.data, chunk.used);
      return true;
    });
  }

  void* from_system(std::int64_t size) {
#ifdef ERGON_DEBUG_CHECKS
    // One by one, so that AddressSanitizer sees where they end.
    if (size < kLargeBlock) return std::aligned_alloc(kAlignment, static_cast<std::size_t>(size));
#endif
    if (size >= kLargeBlock) return map_pages(size, kHugePage);
    if (chunks_.empty() || chunks_.back().used + size > kChunk) {
      void* data = map_pages(kChunk, kChunk);
      if (data == nullptr) return nullptr;
      chunks_.push_back({static_cast<char*>(data), 0});
    }
    Chunk& chunk = chunks_.back();
    void* block = chunk.data + chunk.used;
    chunk.used += size;
    return block;
  }

  void to_system(void* block, std::int64_t size) noexcept {
    std::free(block);
    reserve(-size);
  }

  void reserve(std::int64_t bytes) noexcept {
    reserved_ += bytes;
    ledger_.set_reserved(reserved_);
  }

  struct Chunk {
    char* data;         // kChunk bytes, aligned to their number
    std::int64_t used;  // bytes cut from its front
  };
  static char* chunk_of(void* block) {
    return reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(block) & ~std::uintptr_t{kChunk - 1});
  }

  std::mutex mutex_;
  std::vector<Chunk> chunks_;
  std::map<std::int64_t, std::vector<void*>> cached_;  // by rounded size
  std::int64_t reserved_ = 0;
  MemoryLedger ledger_{Device::cpu()};
};

// Page-locked host memory, which is dear to get: freed blocks are kept, and used again once the copies that
// used them have finished.
class PinnedAllocator {
 public:
  void* allocate(std::int64_t bytes, const char* holder) {
    const std::int64_t size = rounded_size(bytes);
    ledger_.add(size, holder);
    std::lock_guard lock(mutex_);
    std::vector<Kept>& kept = kept_[size];
    const auto ready = std::find_if(kept.begin(), kept.end(), [](const Kept& entry) {
      return std::all_of(entry.uses.begin(), entry.uses.end(), [](const Event& use) { return use.passed(); });
    });
    if (ready != kept.end()) {
      void* block = ready->block;
      kept.erase(ready);
      return block;
    }
    void* block = detail::cuda::allocate_pinned(size);
    if (block == nullptr) {
      ledger_.remove(size, holder);
      ledger_.throw_out_of_memory(bytes, " as page-locked memory");
    }
    reserved_ += size;
    ledger_.set_reserved(reserved_);
    return block;
  }

  void deallocate(void* block, std::int64_t bytes, const char* holder,
                  const std::vector<Stream>& uses) noexcept {
    const std::int64_t size = rounded_size(bytes);
    ledger_.remove(size, holder);
    Kept entry{block, {}};
    try {
      for (const Stream& stream : uses) entry.uses.emplace_back().record(stream);
    } catch (const Error&) {
      entry.uses.clear();  // a device that has failed reads no more
    }
    std::lock_guard lock(mutex_);
    kept_[size].push_back(std::move(entry));
  }

  void empty_cache() {
    std::lock_guard lock(mutex_);
    for (auto& [size, kept] : kept_) {
      for (const Kept& entry : kept) {
        detail::cuda::free_pinned(entry.block);  // waits for the device
        reserved_ -= size;
      }
    }
    kept_.clear();
    ledger_.set_reserved(reserved_);
  }
  MemoryLedger& ledger() { return ledger_; }

 private:
  struct Kept {
    void* block;
    std::vector<Event> uses;  // must have passed before the block is used again
  };

  std::mutex mutex_;
  std::map<std::int64_t, std::vector<Kept>> kept_;  // by rounded size
  std::int64_t reserved_ = 0;
  MemoryLedger ledger_{Device::cpu()};
};

// A CUDA device's memory: the runtime's pool does the work.
class CudaAllocator {
 public:
  explicit CudaAllocator(int index) : index_(index), ledger_(Device::cuda(index)) {}

  void* allocate(const Stream& stream, std::int64_t bytes, const char* holder) {
    if (bytes == 0) return nullptr;
    ledger_.add(bytes, holder);
    void* block = detail::cuda::allocate(stream, bytes);
    if (block == nullptr) {  // what streams are about to give back may do
      synchronize(stream.device());
      detail::cuda::trim(index_);
      block = detail::cuda::allocate(stream, bytes);
    }
    if (block == nullptr) {
      ledger_.remove(bytes, holder);
      const auto memory = detail::cuda::device_memory(index_);
      ledger_.throw_out_of_memory(bytes,
                                  fmt::format(", {} free of the device's {}", memory.free, memory.total));
    }
    return block;
  }

  void deallocate(Storage& storage) noexcept {
    if (storage.data == nullptr) return;
    ledger_.remove(storage.bytes, storage.holder);
    detail::cuda::deallocate(storage.stream, storage.data, storage.other_uses);
  }

  MemoryLedger& ledger() {
    ledger_.set_reserved(detail::cuda::reserved_bytes(index_));
    return ledger_;
  }
  void empty_cache() {
    synchronize(Device::cuda(index_));
    detail::cuda::trim(index_);
  }

 private:
  int index_;
  MemoryLedger ledger_;
};

// Never destroyed: tensors with static lifetime may be freed after they would have been.
CpuAllocator& cpu_allocator() {
  static auto* allocator = new CpuAllocator;
  return *allocator;
}

PinnedAllocator& pinned_allocator() {
  static auto* allocator = [] {
    auto* made = new PinnedAllocator;
    std::atexit([] { pinned_allocator().empty_cache(); });
    return made;
  }();
  return *allocator;
}

CudaAllocator& cuda_allocator(int index) {
  static std::mutex mutex;
  static auto* allocators = new std::map<int, CudaAllocator>;
  std::lock_guard lock(mutex);
  return allocators->try_emplace(index, index).first->second;
}

MemoryLedger& ledger_of(Device device) {
  check_available(device);
  return device.is_cpu() ? cpu_allocator().ledger() : cuda_allocator(device.index).ledger();
}

}  // namespace

MemoryStats memory_stats(Device device) { return ledger_of(device).stats(); }
MemoryStats pinned_memory_stats() { return pinned_allocator().ledger().stats(); }
void reset_peak_memory(Device device) { ledger_of(device).reset_peak(); }
void set_memory_limit(std::int64_t bytes, Device device) { ledger_of(device).set_limit(bytes); }

void empty_cache(Device device) {
  check_available(device);
  if (device.is_cpu()) {
    cpu_allocator().empty_cache();
    pinned_allocator().empty_cache();
  } else {
    cuda_allocator(device.index).empty_cache();
  }
}

namespace detail {

void allocate(Storage& storage) {
  check_available(storage.device);
  storage.holder = OpScope::current();
  storage.stream = current_stream(storage.device);
  if (storage.pinned) {
    storage.data = pinned_allocator().allocate(storage.bytes, storage.holder);
  } else if (storage.device.is_cpu()) {
    storage.data = cpu_allocator().allocate(storage.bytes, storage.holder);
  } else {
    storage.data =
        cuda_allocator(storage.device.index).allocate(storage.stream, storage.bytes, storage.holder);
  }
}

void deallocate(Storage& storage) noexcept {
  if (storage.pinned) {
    pinned_allocator().deallocate(storage.data, storage.bytes, storage.holder, storage.other_uses);
  } else if (storage.device.is_cpu()) {
    cpu_allocator().deallocate(storage.data, storage.bytes, storage.holder);
  } else {
    cuda_allocator(storage.device.index).deallocate(storage);
  }
}

}  // namespace detail
}  // namespace ergon
