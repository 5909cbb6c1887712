#pragma once

// Sums and maxima over the threads of a warp and of a block. Deterministic: a fixed tree.

#include <cstdint>
#include <limits>

namespace ergon::device {

inline constexpr unsigned kFullMask = 0xffffffffu;
inline constexpr int kWarpSize = 32;

struct Sum {
  template <class T>
  __device__ __forceinline__ static T identity() {
    return T(0);
  }
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// NaN passes.
struct Max {
  template <class T>
  __device__ __forceinline__ static T identity() {
    using Limits = std::numeric_limits<T>;
    return Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
  }
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

struct Min {
  template <class T>
  __device__ __forceinline__ static T identity() {
    using Limits = std::numeric_limits<T>;
    return Limits::has_infinity ? Limits::infinity() : Limits::max();
  }
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b || a != a ? a : b;
  }
};

// op over the kWidth neighbouring lanes, in every one of them; kWidth a power of two up to 32.
template <class Op, int kWidth = kWarpSize, class T>
__device__ __forceinline__ T warp_reduce(T value, Op op = {}) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(kFullMask, value, offset));
  }
  return value;
}

// op over all threads of a one-dimensional block of kThreads, in every one of them. `scratch`: shared memory
// for kThreads / 32 values, which may be used again after the next __syncthreads().
template <class Op, int kThreads, class T>
__device__ __forceinline__ T block_reduce(T value, T* scratch, Op op = {}) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0 && kWarps <= kWarpSize && (kWarps & (kWarps - 1)) == 0);
  value = warp_reduce(value, op);
  if constexpr (kWarps == 1) return value;
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  return warp_reduce<Op, kWarps>(scratch[threadIdx.x % kWarps], op);
}

}  // namespace ergon::device
