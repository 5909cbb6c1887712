#pragma once

// The arithmetic of a warp tile for each element type.

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/gemm/tile.h"

namespace ergon::kernels::cuda::gemm_detail {

using namespace device;

// kFragmentBuffers: 2 to load the next fragments while these are multiplied. kAnyRegister: operand.cuh.
// has_tile: whether the kernel is built for kTiles[tile]. multiply(sums, a, b): sums[i][2j + h] += fragment i
// of A times half h of fragment j of B (operand.cuh). Careful: the arithmetic to compute sums anew with that
// are NaN.

// One mma for each pair of fragments.
template <class T, auto kMma>
struct SingleMath {
  using Element = T;
  using Careful = void;
  static constexpr int kFragmentBuffers = 2;
  static constexpr bool kAnyRegister = false;
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

// The bits of a number that mma reads as tf32. A variable, as the compiler would give mma the whole number in
// place of these bits of it, and for that move it to where mma wants it, again for each mma.
static __constant__ std::uint32_t tf32_bits = 0xffffe000u;

// fp32 operands split into x = large + small, large being x cut off to tf32: a b = small large + large small
// + large large, without the product of the small parts. A small part is below 2^-10 x, exact, and has 13
// bits, of which mma ignores up to two: relative error of a product below 2^-20 + 2 * 3 * 2^-23 < 2^-19. The
// small part of an infinity is NaN, and so are its sums; kCareful is for computing them again. The large part
// then is the largest tf32 and the small one infinite, which meets only large parts: infinity * 0 does not
// come about.
template <bool kCareful>
struct SplitMath {
  using Element = float;
  // Three times the mma hide the loads of fragments, and shared memory's limits. Two sets of fragments, and
  // the sums of the largest tiles, do not fit into registers beside the split ones.
  static constexpr int kFragmentBuffers = 1;
  static constexpr bool kAnyRegister = true;
  static constexpr bool has_tile(int tile) { return kTiles[tile].rows * kTiles[tile].cols <= 128 * 128; }

  __device__ __forceinline__ static void split(std::uint32_t x, std::uint32_t& large, std::uint32_t& small) {
    constexpr float kLargest = 0x1.ffcp+127f;
    large = x & tf32_bits;
    if (kCareful) large = __float_as_uint(fminf(fmaxf(__uint_as_float(large), -kLargest), kLargest));
    asm("sub.f32 %0, %1, %2;" : "=r"(small) : "r"(x), "r"(large));  // of bits: a float would cost PTX a move
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

struct SplitTf32Math : SplitMath<false> {
  using Careful = SplitMath<true>;
};

}  // namespace ergon::kernels::cuda::gemm_detail
