#pragma once

// The arithmetic of a warp tile for each element type.

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/gemm/tile.h"

namespace ergon::kernels::cuda::gemm_detail {

using namespace device;

// kFragmentBuffers: 2 to load the next fragments while these are multiplied. has_tile: whether the kernel is
// built for kTiles[tile]. multiply(sums, a, b): sums[i][2j + h] += fragment i of A times half h of fragment j
// of B (operand.cuh).

// One mma for each pair of fragments.
template <class T, auto kMma>
struct SingleMath {
  using Element = T;
  static constexpr int kFragmentBuffers = 2;
  static constexpr bool has_tile(int) { return true; }

  template <int kA, int kB>
  __device__ __forceinline__ static void multiply(float (&sums)[kA][2 * kB][4],
                                                  const std::uint32_t (&a)[kA][4],
                                                  const std::uint32_t (&b)[kB][4]) {
#pragma unroll
    for (int j = 0; j < 2 * kB; ++j) {
#pragma unroll
      for (int i = 0; i < kA; ++i) kMma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
};

struct Bf16Math : SingleMath<bf16, mma_bf16> {};
struct F16Math : SingleMath<f16, mma_f16> {};
// fp32 operands, of which mma ignores the low 13 bits: relative error of a product below 2^-9.
struct Tf32Math : SingleMath<float, mma_tf32> {};

// fp32 operands split into x = large + small, large the nearest tf32: a b = small large + large small + large
// large, without the product of the small parts. x - large is exact and has 12 bits, of which mma ignores the
// last: relative error of a product below 2^-22 + 2 * 2^-23 = 2^-21, against 2^-24 of one rounding to fp32.
// An infinity is split into the largest tf32 and an infinite small part, which meets only large parts: as
// large part it would give infinity * 0 with a small one.
struct SplitTf32Math {
  using Element = float;
  // Three times the mma hide the loads of fragments, and shared memory's limits. Two sets of fragments, and
  // the sums of the largest tiles, do not fit into registers beside the split ones.
  static constexpr int kFragmentBuffers = 1;
  static constexpr bool has_tile(int tile) { return kTiles[tile].rows * kTiles[tile].cols <= 128 * 128; }

  // Rounds by an integer addition, in `large` with bits left over that mma ignores. The numbers it is for are
  // those that do not round to infinity; what lies beyond them stays in `small`, as does a NaN.
  __device__ __forceinline__ static void split(std::uint32_t x, std::uint32_t& large, std::uint32_t& small) {
    constexpr float kLargest = 0x1.ffdffep+127f;  // half a unit of tf32 more is the next power of two
    const float value = __uint_as_float(x);
    large = __float_as_uint(fminf(fmaxf(value, -kLargest), kLargest)) + 0x1000u;
    small = __float_as_uint(value - __uint_as_float(large & 0xffffe000u));
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
      std::uint32_t large_b[2], small_b[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) split(b[j / 2][j % 2 * 2 + r], large_b[r], small_b[r]);
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_tf32(sums[i][j], small[i], large_b[0], large_b[1]);
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_tf32(sums[i][j], large[i], small_b[0], small_b[1]);
#pragma unroll
      for (int i = 0; i < kA; ++i) mma_tf32(sums[i][j], large[i], large_b[0], large_b[1]);
    }
  }
};

}  // namespace ergon::kernels::cuda::gemm_detail
