#pragma once

// The arithmetic of a warp tile for each element type.

#include "kernels/cuda/common/mma.cuh"

namespace ergon::kernels::cuda::gemm_detail {

using namespace device;

// multiply(sums, a, b): sums[i][2j + h] += fragment i of A times half h of fragment j of B (operand.cuh).

struct Bf16Math {
  using Element = bf16;

  template <int kA, int kB>
  __device__ __forceinline__ static void multiply(float (&sums)[kA][2 * kB][4],
                                                  const std::uint32_t (&a)[kA][4],
                                                  const std::uint32_t (&b)[kB][4]) {
#pragma unroll
    for (int j = 0; j < 2 * kB; ++j) {
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_bf16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
};

struct F16Math {
  using Element = f16;

  template <int kA, int kB>
  __device__ __forceinline__ static void multiply(float (&sums)[kA][2 * kB][4],
                                                  const std::uint32_t (&a)[kA][4],
                                                  const std::uint32_t (&b)[kB][4]) {
#pragma unroll
    for (int j = 0; j < 2 * kB; ++j) {
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_f16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
};

// fp32 operands, each rounded to the nearest tf32: relative error of a product below 2^-10.
struct Tf32Math {
  using Element = float;

  template <int kA, int kB>
  __device__ __forceinline__ static void multiply(float (&sums)[kA][2 * kB][4],
                                                  const std::uint32_t (&a)[kA][4],
                                                  const std::uint32_t (&b)[kB][4]) {
    std::uint32_t rounded[kA][4];
#pragma unroll
    for (int i = 0; i < kA; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) rounded[i][r] = round_to_tf32(a[i][r]);
    }
#pragma unroll
    for (int j = 0; j < 2 * kB; ++j) {
      const std::uint32_t b0 = round_to_tf32(b[j / 2][j % 2 * 2]),
                          b1 = round_to_tf32(b[j / 2][j % 2 * 2 + 1]);
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_tf32(sums[i][j], rounded[i], b0, b1);
    }
  }
};

// fp32 operands split into x = large + small, large the nearest tf32: a b = small large + large small + large
// large, without the product of the small parts. x - large is exact and has 12 bits, of which mma ignores the
// last: relative error of a product below 2^-22 + 2 * 2^-23 = 2^-21, against 2^-24 of one rounding to fp32.
// Infinite operands give NaN (infinity - infinity), and so do those that round to infinity: magnitudes above
// (2 - 2^-11) 2^127.
struct SplitTf32Math {
  using Element = float;

  __device__ __forceinline__ static void split(std::uint32_t x, std::uint32_t& large, std::uint32_t& small) {
    large = round_to_tf32(x);
    small = __float_as_uint(__uint_as_float(x) - __uint_as_float(large));
  }

  template <int kA, int kB>
  __device__ __forceinline__ static void multiply(float (&sums)[kA][2 * kB][4],
                                                  const std::uint32_t (&a)[kA][4],
                                                  const std::uint32_t (&b)[kB][4]) {
    std::uint32_t large[kA][4], small[kA][4];
#pragma unroll
    for (int i = 0; i < kA; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) split(a[i][r], large[i][r], small[i][r]);
    }
#pragma unroll
    for (int j = 0; j < 2 * kB; ++j) {
      std::uint32_t large0, small0, large1, small1;
      split(b[j / 2][j % 2 * 2], large0, small0);
      split(b[j / 2][j % 2 * 2 + 1], large1, small1);
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_tf32(sums[i][j], small[i], large0, large1);
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_tf32(sums[i][j], large[i], small0, small1);
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_tf32(sums[i][j], large[i], large0, large1);
    }
  }
};

}  // namespace ergon::kernels::cuda::gemm_detail
