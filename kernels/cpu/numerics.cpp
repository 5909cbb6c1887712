#include "kernels/numerics.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>

#include "core/convert.h"
#include "core/parallel.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kRun = 1024;              // converted at a time
constexpr std::uint32_t kInfinity = 0x7f800000;  // magnitudes of f32 are in the order of their bits

struct Thresholds {
  std::uint32_t smallest, largest;
};

// Counts of up to kRun elements.
NumericsCounts count_run(const float* x, std::int64_t n, const Thresholds& t) {
  std::uint32_t amax = 0, nonzero = 0, underflow = 0, overflow = 0, infinite = 0, nan = 0;
#pragma omp simd reduction(max : amax) reduction(+ : nonzero, underflow, overflow, infinite, nan)
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffff;
    const std::uint32_t finite = magnitude < kInfinity ? magnitude : 0;
    amax = std::max(amax, finite);
    nonzero += finite != 0;
    underflow += (finite != 0) & (finite < t.smallest);
    overflow += finite > t.largest;
    infinite += magnitude == kInfinity;
    nan += magnitude > kInfinity;
  }
  return {amax, nonzero, underflow, overflow, infinite, nan};
}

void add(NumericsCounts& into, const NumericsCounts& counts) {
  into.amax_bits = std::max(into.amax_bits, counts.amax_bits);
  into.nonzero += counts.nonzero;
  into.underflow += counts.underflow;
  into.overflow += counts.overflow;
  into.infinite += counts.infinite;
  into.nan += counts.nan;
}

template <class T>
NumericsCounts count(const T* x, std::int64_t n, const Thresholds& thresholds) {
  NumericsCounts counts;
  std::array<float, kRun> buffer;
  for (std::int64_t i = 0; i < n; i += kRun) {
    const std::int64_t length = std::min(kRun, n - i);
    convert_run(x + i, buffer.data(), length);
    add(counts, count_run(buffer.data(), length, thresholds));
  }
  return counts;
}

}  // namespace

void numerics(const NumericsParams& p) {
  const Thresholds thresholds{std::bit_cast<std::uint32_t>(p.smallest),
                              std::bit_cast<std::uint32_t>(p.largest)};
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
  dispatch_floating(p.dtype, "numerics", [&](auto tag) {
    const auto* x = static_cast<const typename decltype(tag)::type*>(p.x);
    parallel_for(0, p.numel, 16 * kRun, [&](std::int64_t begin, std::int64_t end) {
      const NumericsCounts counts = count(x + begin, end - begin, thresholds);
      while (busy.test_and_set(std::memory_order_acquire)) {
      }
      add(*p.counts, counts);
      busy.clear(std::memory_order_release);
    });
  });
}

}  // namespace ergon::kernels::cpu
