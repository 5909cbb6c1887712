#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "core/error.h"

namespace ergon::kernels::cpu {

// Page-aligned memory that only grows, for a thread_local scratch buffer: an allocation a call costs more
// than a small product, and its pages come one fault at a time. Contents are undefined.
class Workspace {
 public:
  template <class T>
  T* reserve(std::int64_t elements) {
    const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(T);
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = (bytes + kPage - 1) / kPage * kPage;
      memory_.reset(std::aligned_alloc(kPage, capacity_));
      if (memory_ == nullptr) {
        capacity_ = 0;
        throw OutOfMemoryError(fmt::format("no memory for a workspace of {} bytes", bytes));
      }
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::size_t kPage = 4096;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t capacity_ = 0;
};

}  // namespace ergon::kernels::cpu
