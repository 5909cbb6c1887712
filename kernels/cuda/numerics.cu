// kernels/numerics.h on CUDA: a block counts a part, and adds it up with integer atomics.

#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/numerics.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;
constexpr std::uint32_t kInfinity = 0x7f800000;  // magnitudes of f32 are in the order of their bits

struct ThreadCounts {
  std::uint32_t amax = 0, nonzero = 0, underflow = 0, overflow = 0, infinite = 0, nan = 0;

  __device__ __forceinline__ void add(float value, std::uint32_t smallest, std::uint32_t largest) {
    const std::uint32_t magnitude = __float_as_uint(value) & 0x7fffffffu;
    const std::uint32_t finite = magnitude < kInfinity ? magnitude : 0;
    amax = max(amax, finite);
    nonzero += finite != 0;
    underflow += finite != 0 && finite < smallest;
    overflow += finite > largest;
    infinite += magnitude == kInfinity;
    nan += magnitude > kInfinity;
  }
};

// Counts of a block are below 2^32: the launcher gives it fewer elements.
template <class Op>
__device__ void add_up(std::int64_t* into, std::uint32_t value, std::uint32_t* scratch) {
  value = block_reduce<Op, kThreads>(value, scratch);
  __syncthreads();
  if (threadIdx.x != 0 || value == 0) return;
  auto* word = reinterpret_cast<unsigned long long*>(into);
  if constexpr (std::is_same_v<Op, Max>) {
    atomicMax(word, static_cast<unsigned long long>(value));
  } else {
    atomicAdd(word, static_cast<unsigned long long>(value));
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) numerics_kernel(NumericsParams p) {
  __shared__ std::uint32_t scratch[kThreads / kWarpSize];
  const T* x = static_cast<const T*>(p.x);
  const std::uint32_t smallest = __float_as_uint(p.smallest), largest = __float_as_uint(p.largest);
  const std::int64_t vectors = p.numel / kWidth, stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  ThreadCounts counts;
  for (std::int64_t v = thread; v < vectors; v += stride) {
    const auto values = convert_vector<float>(load<kWidth>(x + v * kWidth));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) counts.add(values[i], smallest, largest);
  }
  if (thread < p.numel - vectors * kWidth) {
    counts.add(convert<float>(x[vectors * kWidth + thread]), smallest, largest);
  }
  add_up<Max>(&p.counts->amax_bits, counts.amax, scratch);
  add_up<Sum>(&p.counts->nonzero, counts.nonzero, scratch);
  add_up<Sum>(&p.counts->underflow, counts.underflow, scratch);
  add_up<Sum>(&p.counts->overflow, counts.overflow, scratch);
  add_up<Sum>(&p.counts->infinite, counts.infinite, scratch);
  add_up<Sum>(&p.counts->nan, counts.nan, scratch);
}

}  // namespace

void numerics(const NumericsParams& p) {
  if (p.numel == 0) return;
  dispatch_floating(p.dtype, "numerics", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto launch = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const int blocks = grid_stride_blocks((p.numel + kWidth - 1) / kWidth, kThreads, kThreads);
      numerics_kernel<T, kWidth><<<blocks, kThreads, 0, stream()>>>(p);
      CUDA_CHECK_LAUNCH();
    };
    if (aligned_to(p.x, 16)) {
      launch(std::integral_constant<int, kVectorWidth<T>>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace ergon::kernels::cuda
