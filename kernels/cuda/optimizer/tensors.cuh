#pragma once

// How a block of threads finds its chunk in the list of tensors, and a lane its elements.

#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/optimizer.h"

namespace ergon::kernels::cuda {

using namespace device;

inline constexpr int kStepThreads = 256;

// Elements that a lane takes at a time, and with it a warp: 256 of fp32.
template <class Acc>
inline constexpr int kLaneElements = std::is_same_v<Acc, double> ? 2 : 8;

// The tensor that this block's chunk belongs to: the last one that starts at the chunk or before it.
__device__ __forceinline__ const OptimizerTensor& tensor_of_block(const OptimizerTensor* tensors, int count) {
  int low = 0, high = count;  // first_chunk of [low] <= chunk < that of [high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (tensors[middle].first_chunk <= blockIdx.x ? low : high) = middle;
  }
  return tensors[low];
}

// A lane's elements of a row: groups of kWidth neighbours, 32 * kWidth apart, so that each access of the warp
// is one piece of memory. kWidth > 1: the row is whole and aligned.
template <int kWidth, int kElements>
struct RowPart {
  static constexpr int kCount = kElements;
  std::int64_t first;  // of the row, in the tensor
  int count;           // of the row
  int lane;

  // The k-th of the lane's elements, counted from `first`.
  __device__ __forceinline__ int position(int k) const {
    return k / kWidth * (kWarpSize * kWidth) + lane * kWidth + k % kWidth;
  }
  __device__ __forceinline__ bool has(int k) const { return kWidth > 1 || position(k) < count; }

  template <class T, class Acc>
  __device__ __forceinline__ void load(const void* array, Acc (&values)[kElements]) const {
    const T* from = static_cast<const T*>(array) + first;
    if constexpr (kWidth > 1) {
      Vector<T, kWidth> vectors[kElements / kWidth];
#pragma unroll
      for (int k = 0; k < kElements; k += kWidth)
        vectors[k / kWidth] = device::load<kWidth>(from + position(k));
#pragma unroll
      for (int k = 0; k < kElements; ++k) values[k] = convert<Acc>(vectors[k / kWidth][k % kWidth]);
    } else {
#pragma unroll
      for (int k = 0; k < kElements; ++k) values[k] = has(k) ? convert<Acc>(from[position(k)]) : Acc(0);
    }
  }

  template <class T, class Acc>
  __device__ __forceinline__ void store(void* array, const Acc (&values)[kElements]) const {
    T* to = static_cast<T*>(array) + first;
    if constexpr (kWidth > 1) {
#pragma unroll
      for (int k = 0; k < kElements; k += kWidth) {
        Vector<T, kWidth> vector;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) vector[i] = convert<T>(values[k + i]);
        device::store(to + position(k), vector);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        if (has(k)) to[position(k)] = convert<T>(values[k]);
      }
    }
  }
};

// Calls f(TypeTag<T>{}) with the type of a floating-point dtype that is computed in Acc; the same branch for
// all threads of a block.
template <class Acc, class F>
__device__ __forceinline__ void with_storage(DType dtype, F&& f) {
  if constexpr (std::is_same_v<Acc, double>) {
    f(TypeTag<double>{});
  } else if (dtype == DType::bf16) {
    f(TypeTag<bf16>{});
  } else if (dtype == DType::f16) {
    f(TypeTag<f16>{});
  } else {
    f(TypeTag<float>{});
  }
}

// f(RowPart) for each row of this block's chunk, a warp a row; rows of four neighbours a lane where `aligned`
// and whole.
template <class Acc, class F>
__device__ __forceinline__ void for_each_row(const OptimizerTensor& t, bool aligned, F&& f) {
  constexpr int kElements = kLaneElements<Acc>, kRow = kWarpSize * kElements;
  const std::int64_t begin = (blockIdx.x - t.first_chunk) * kOptimizerChunk;
  const std::int64_t end = min(begin + kOptimizerChunk, t.numel);
  const int lane = threadIdx.x % kWarpSize;
  for (std::int64_t first = begin + threadIdx.x / kWarpSize * kRow; first < end;
       first += kStepThreads * kElements) {
    const int count = static_cast<int>(min(std::int64_t{kRow}, end - first));
    if constexpr (std::is_same_v<Acc, float>) {
      if (aligned && count == kRow) {
        f(RowPart<4, kElements>{first, count, lane});
        continue;
      }
    }
    f(RowPart<1, kElements>{first, count, lane});
  }
}

__device__ __forceinline__ std::uintptr_t address_bits(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

}  // namespace ergon::kernels::cuda
