#pragma once

// Positions of the elements of several tensors of one shape and different strides.

#include <array>
#include <cstdint>

#include "core/merge_dims.h"

namespace ergon::device {

// Division of numbers below 2^31 by a number fixed at the launch: one multiplication instead of some twenty
// instructions (Granlund and Montgomery, "Division by invariant integers using multiplication", PLDI 1994).
struct FastDivisor {
  std::uint32_t divisor = 1;
  std::uint32_t multiplier = 0;
  std::uint32_t shift = 0;

  FastDivisor() = default;
  explicit FastDivisor(std::int64_t value) : divisor(static_cast<std::uint32_t>(value)) {
    while (shift < 32 && (std::uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<std::uint32_t>(
        ((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - divisor)) / divisor + 1);
  }
  __device__ __forceinline__ std::uint32_t divide(std::uint32_t value) const {
    return (__umulhi(value, multiplier) + value) >> shift;
  }
};

// A merged shape with one set of strides for each of N operands, for tensors of fewer than 2^31 elements.
template <int N>
struct StridedIndex {
  int dims = 0;
  FastDivisor sizes[Dims::kMaxDims];  // innermost first
  std::int64_t strides[N][Dims::kMaxDims];

  StridedIndex() = default;
  explicit StridedIndex(const StridedLoop<N>& loop) : dims(loop.shape.size()) {
    for (int i = 0; i < dims; ++i) {
      sizes[i] = FastDivisor(loop.shape[dims - 1 - i]);
      for (int k = 0; k < N; ++k) strides[k][i] = loop.strides[k][dims - 1 - i];
    }
  }

  struct Offsets {
    std::int64_t values[N];
    __device__ __forceinline__ std::int64_t operator[](int k) const { return values[k]; }
  };
  // Of element `index`, counted row-major, in each operand.
  __device__ __forceinline__ Offsets offsets(std::uint32_t index) const {
    Offsets result{};
#pragma unroll
    for (int i = 0; i < Dims::kMaxDims; ++i) {
      if (i == dims) break;
      const std::uint32_t rest = sizes[i].divide(index);
      const std::uint32_t position = index - rest * sizes[i].divisor;
#pragma unroll
      for (int k = 0; k < N; ++k) result.values[k] += position * strides[k][i];
      index = rest;
    }
    return result;
  }
};

}  // namespace ergon::device
