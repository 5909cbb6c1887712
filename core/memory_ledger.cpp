#include "core/memory_ledger.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/error.h"

namespace ergon::detail {

void MemoryLedger::add(std::int64_t bytes, const char* holder) {
  {
    std::lock_guard lock(mutex_);
    if (limit_ == 0 || stats_.current + bytes <= limit_) {
      stats_.current += bytes;
      stats_.peak = std::max(stats_.peak, stats_.current);
      Held& held = held_[holder];
      held.bytes += bytes;
      ++held.blocks;
      return;
    }
  }
  throw_out_of_memory(bytes, {});
}

void MemoryLedger::remove(std::int64_t bytes, const char* holder) noexcept {
  std::lock_guard lock(mutex_);
  stats_.current -= bytes;
  Held& held = held_[holder];
  held.bytes -= bytes;
  --held.blocks;
}

void MemoryLedger::set_reserved(std::int64_t bytes) noexcept {
  std::lock_guard lock(mutex_);
  stats_.reserved = bytes;
  stats_.peak_reserved = std::max(stats_.peak_reserved, bytes);
}

void MemoryLedger::set_limit(std::int64_t bytes) {
  std::lock_guard lock(mutex_);
  limit_ = bytes;
}

void MemoryLedger::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.current;
  stats_.peak_reserved = stats_.reserved;
}

MemoryStats MemoryLedger::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

void MemoryLedger::throw_out_of_memory(std::int64_t bytes, const std::string& detail) const {
  std::lock_guard lock(mutex_);
  throw OutOfMemoryError(
      fmt::format("out of memory on {}: asked for {} bytes with {} in use{}{}; largest holders: {}",
                  to_string(device_), bytes, stats_.current,
                  limit_ > 0 ? fmt::format(", limit {}", limit_) : std::string(), detail, largest_holders()));
}

std::string MemoryLedger::largest_holders() const {
  constexpr std::size_t kListed = 3;
  std::vector<std::pair<std::string_view, Held>> holders(held_.begin(), held_.end());
  std::sort(holders.begin(), holders.end(), [](const auto& a, const auto& b) {
    return a.second.bytes != b.second.bytes ? a.second.bytes > b.second.bytes : a.first < b.first;
  });
  std::string text;
  for (std::size_t i = 0; i < std::min(kListed, holders.size()) && holders[i].second.bytes > 0; ++i) {
    const auto& [op, held] = holders[i];
    text += fmt::format("{}{} ({} bytes in {} {})", i > 0 ? ", " : "", op, held.bytes, held.blocks,
                        held.blocks == 1 ? "block" : "blocks");
  }
  return text.empty() ? "none" : text;
}

}  // namespace ergon::detail
