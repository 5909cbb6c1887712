#pragma once

// Bytes that an op moves in a second, against memcpy of the same number of bytes on the same threads in the
// same run.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "core/tensor.h"

namespace ergon::bench {

inline double seconds(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// Reads and writes bytes / 2 each.
class Memcpy {
 public:
  explicit Memcpy(std::int64_t bytes)
      : half_(bytes / 2), from_(zeros({half_}, {DType::u8})), to_(zeros({half_}, {DType::u8})) {}
  void operator()() const {
    auto* to = static_cast<char*>(to_.data_ptr());
    const auto* from = static_cast<const char*>(from_.data_ptr());
    parallel_for(0, half_, 65536, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin));
    });
  }

 private:
  std::int64_t half_;
  Tensor from_, to_;
};

// Prints time, bytes a second and the ratio to memcpy: medians of 30 rounds that run one after the other.
// Returns the time in seconds.
inline double report(const std::string& name, std::int64_t bytes, const std::function<void()>& f) {
  const Memcpy copy(bytes);
  const auto repeat = std::max<int>(1, static_cast<int>(4'000'000 / std::max<std::int64_t>(bytes, 40'000)));
  std::vector<double> times, ratios;
  for (int round = 0; round < 32; ++round) {
    const double mine = seconds([&] {
      for (int i = 0; i < repeat; ++i) f();
    });
    const double peer = seconds([&] {
      for (int i = 0; i < repeat; ++i) copy();
    });
    if (round < 2) continue;  // warm-up
    times.push_back(mine / repeat);
    ratios.push_back(peer / mine);
  }
  const double time = median(times);
  std::printf("%-34s %9.1f us %7.1f GB/s %6.2f x memcpy\n", name.c_str(), time * 1e6,
              static_cast<double>(bytes) / time * 1e-9, median(ratios));
  return time;
}

}  // namespace ergon::bench
