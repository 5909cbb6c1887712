#pragma once

// The sums of a block's tile of C from K-steps in shared memory, whoever puts them there.

#include "kernels/cuda/gemm/math.cuh"
#include "kernels/cuda/gemm/operand.cuh"

namespace ergon::kernels::cuda::gemm_detail {

using namespace device;

template <class Math, int kTile, bool kADepth, bool kBDepth>
class TileProduct {
 public:
  static constexpr Tile kT = kTiles[kTile];
  static constexpr int kThreads = kT.threads();
  using Element = typename Math::Element;
  using A = Operand<Element, true, kT.rows, kT.step_bytes, kADepth, kT.warp_rows, kThreads>;
  using B = Operand<Element, false, kT.cols, kT.step_bytes, kBDepth, kT.warp_cols, kThreads>;
  static constexpr int kDepth = A::kDepth;  // of a K-step
  using Sums = float[A::kFragments][2 * B::kFragments][4];

  // `shared`: kT.shared_bytes(), aligned to 128.
  __device__ explicit TileProduct(unsigned char* shared)
      : shared_(shared),
        stages_(shared_address(shared)),
        warp_row_(static_cast<int>(threadIdx.x) / 32 % (kT.rows / kT.warp_rows) * kT.warp_rows),
        warp_col_(static_cast<int>(threadIdx.x) / 32 / (kT.rows / kT.warp_rows) * kT.warp_cols),
        read_a_(warp_row_, stages_),
        read_b_(warp_col_, stages_ + A::kBytes) {}

  // Adds the products of `steps` K-steps. copy(step, a, b, whole) starts the copies of one into its parts of
  // shared memory; `whole` is std::true_type for some of the first `whole_steps`.
  template <class Copy>
  __device__ __forceinline__ void multiply(Sums& sums, int steps, int whole_steps, const Copy& copy) const {
    constexpr int kBuffers = Math::kFragmentBuffers;
    std::uint32_t a[kBuffers][A::kFragments][4], b[kBuffers][B::kFragments][4];
    // Offsets of stages; they are the same for all threads, and instructions add them without further ado.
    std::uint32_t read_stage = 0, write_stage = kAllBytes - kStageBytes;
    const auto load_fragments = [&](auto part) {
      read_a_.template load<part>(a[part % kBuffers], read_stage);
      read_b_.template load<part>(b[part % kBuffers], read_stage);
    };
    const auto copy_step = [&](int step, std::uint32_t stage, auto whole) {
      if (whole || step < steps) copy(step, stage, stage + A::kBytes, whole);
      copy_async_commit();
    };
    // A K-step. The fragments of a part are loaded while the part before it is multiplied. A stage is free
    // for the copy of a later step once all warps have passed the barrier: they have loaded its last
    // fragments.
    const auto multiply_step = [&](int step, auto whole) {
      unrolled<kParts>([&](auto part) {
        constexpr std::integral_constant<int, (part + 1) % kParts> kNext;
        if constexpr (kNext == 0) {
          copy_async_wait<kT.stages - 2>();
          __syncthreads();
          write_stage = read_stage;
          read_stage = read_stage + kStageBytes == kAllBytes ? 0 : read_stage + kStageBytes;
        }
        const bool more = whole || kNext != 0 || step + 1 < steps;
        if (kBuffers == 2 && more) load_fragments(kNext);
        if constexpr (part == 0) copy_step(step + kT.stages - 1, stages_ + write_stage, whole);
        Math::multiply(sums, a[part % kBuffers], b[part % kBuffers]);
        if (kBuffers == 1 && more) load_fragments(kNext);
      });
    };

#pragma unroll 1
    for (int step = 0; step < kT.stages - 1; ++step) {
      copy_step(step, stages_ + step * kStageBytes, std::false_type{});
    }
    copy_async_wait<kT.stages - 2>();
    __syncthreads();
    if (steps > 0) load_fragments(std::integral_constant<int, 0>{});
    int step = 0;
#pragma unroll 1
    for (; step + kT.stages - 1 < whole_steps; ++step) multiply_step(step, std::true_type{});
#pragma unroll 1
    for (; step < steps; ++step) multiply_step(step, std::false_type{});
    __syncthreads();
  }

  // The column of the tile where all of this thread's runs begin.
  __device__ int run_col() const { return warp_col_ + static_cast<int>(threadIdx.x) % 32 % kLanesPerRow * 4; }

  // f(row, values) for each run of this thread: values[e] is the sum at (row, run_col() + e) of the tile.
  // Through shared memory, a strip of 16 rows of a warp at a time, so that rows of C are written as such.
  template <class F>
  __device__ __forceinline__ void for_each_run(const Sums& sums, const F& f) const {
    constexpr int kPitch = kT.warp_cols + 8;
    static_assert(16 * kPitch * sizeof(float) * (kThreads / 32) <= kAllBytes);
    float* strip = reinterpret_cast<float*>(shared_) + static_cast<int>(threadIdx.x) / 32 * 16 * kPitch;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int i = 0; i < A::kFragments; ++i) {
#pragma unroll
      for (int fragment = 0; fragment < A::kFragments; ++fragment) {
        if (fragment != i) continue;  // registers have no addresses
#pragma unroll
        for (int j = 0; j < 2 * B::kFragments; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            strip[(lane / 4 + e / 2 * 8) * kPitch + B::row_of(j / 2, j % 2, lane % 4 * 2 + e % 2)] =
                sums[fragment][j][e];
          }
        }
      }
      __syncwarp();
#pragma unroll 1
      for (int r = lane / kLanesPerRow; r < 16; r += 32 / kLanesPerRow) {
        const float4 four = *reinterpret_cast<const float4*>(strip + r * kPitch + lane % kLanesPerRow * 4);
        float values[4] = {four.x, four.y, four.z, four.w};
        f(warp_row_ + A::row_of(i, r / 8, r % 8), values);
      }
      __syncwarp();
    }
    __syncthreads();
  }

 private:
  static constexpr int kParts = kT.step_bytes / 32;  // of a K-step: the depth of one mma each
  static constexpr std::uint32_t kStageBytes = A::kBytes + B::kBytes;
  static constexpr std::uint32_t kAllBytes = kStageBytes * kT.stages;
  static_assert(kAllBytes == kT.shared_bytes());
  static constexpr int kLanesPerRow = kT.warp_cols / 4;

  unsigned char* shared_;
  std::uint32_t stages_;
  int warp_row_, warp_col_;
  typename A::Reader read_a_;
  typename B::Reader read_b_;
};

}  // namespace ergon::kernels::cuda::gemm_detail
