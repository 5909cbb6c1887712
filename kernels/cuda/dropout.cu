// kernels/dropout.h on CUDA: a thread takes whole Philox blocks.

#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/dropout.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;

// Elements of a thread: a 16-byte vector, or more where that is less than a Philox block.
template <class T>
inline constexpr int kRun = kVectorWidth<T> < 4 ? 4 : kVectorWidth<T>;

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* x, T* y, std::int64_t numel, PhiloxState random, std::int32_t threshold,
                   accumulate_t<T> scale, bool aligned) {
  constexpr int kCount = kRun<T>;
  const std::int64_t run = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, first = run * kCount;
  if (first >= numel) return;
  const int count = static_cast<int>(min(std::int64_t{kCount}, numel - first));
  const bool whole = aligned && count == kCount;
  Vector<T, kCount> values{};
  if (whole) {
    values = load<kCount>(x + first);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) values[i] = x[first + i];
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const auto words = philox4x32(random.seed, random.offset + static_cast<std::uint64_t>(first + i) / 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const bool kept = static_cast<std::int32_t>(words[k] >> 8) >= threshold;
      const auto scaled = convert<accumulate_t<T>>(values[i + k]) * scale;
      values[i + k] = convert<T>(kept ? scaled : accumulate_t<T>(0));
    }
  }
  if (whole) {
    store(y + first, values);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) y[first + i] = values[i];
    }
  }
}

}  // namespace

void dropout(const DropoutParams& p) {
  if (p.numel == 0) return;
  dispatch_floating(p.dtype, "dropout", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr std::int64_t kBlock = kThreads * kRun<T>;
    // The comparison and the factor of the CPU, to the bit.
    const auto threshold = static_cast<std::int32_t>(std::ceil(p.p * 0x1p24));
    const auto scale = static_cast<accumulate_t<T>>(1 / (1 - p.p));
    dropout_kernel<<<static_cast<unsigned>((p.numel + kBlock - 1) / kBlock), kThreads, 0, stream()>>>(
        static_cast<const T*>(p.x), static_cast<T*>(p.y), p.numel, p.stream, threshold, scale,
        aligned_to(p.x, 16) && aligned_to(p.y, 16));
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace ergon::kernels::cuda
