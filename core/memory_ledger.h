#pragma once

// The books of one device's memory: what tensors hold, and which ops made them. Internal to core.

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/allocator.h"

namespace ergon::detail {

// Thread-safe.
class MemoryLedger {
 public:
  explicit MemoryLedger(Device device) : device_(device) {}

  // Takes `bytes` more into use for `holder`. Throws OutOfMemoryError beyond the limit.
  void add(std::int64_t bytes, const char* holder);
  void remove(std::int64_t bytes, const char* holder) noexcept;
  void set_reserved(std::int64_t bytes) noexcept;
  void set_limit(std::int64_t bytes);
  void reset_peak();
  MemoryStats stats() const;

  // Throws OutOfMemoryError: what was asked for and is in use, `detail` (the device's own figures), and the
  // ops that hold most.
  [[noreturn]] void throw_out_of_memory(std::int64_t bytes, const std::string& detail) const;

 private:
  struct Held {
    std::int64_t bytes = 0;
    std::int64_t blocks = 0;
  };
  std::string largest_holders() const;

  Device device_;
  mutable std::mutex mutex_;
  MemoryStats stats_;
  std::int64_t limit_ = 0;
  std::unordered_map<std::string_view, Held> held_;  // by op
};

}  // namespace ergon::detail
