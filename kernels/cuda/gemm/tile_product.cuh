#pragma once

// The sums of a block's tile of C from K-steps in shared memory, whoever puts them there.

#include <type_traits>

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
  using A =
      Operand<Element, true, kT.rows, kT.step_bytes, kADepth, kT.warp_rows, kThreads, Math::kAnyRegister>;
  using B =
      Operand<Element, false, kT.cols, kT.step_bytes, kBDepth, kT.warp_cols, kThreads, Math::kAnyRegister>;
  static constexpr int kDepth = A::kDepth;  // of a K-step
  using Sums = float[A::kFragments][2 * B::kFragments][4];

  // `shared`: kT.shared_bytes(), aligned to 128.
  __device__ explicit TileProduct(unsigned char* shared)
      : shared_(shared),
        stages_(shared_address(shared)),
        read_a_(warp_row(), stages_),
        read_b_(warp_col(), stages_ + A::kBytes) {}

  // sums = the products of `steps` K-steps. start() takes copy(step, a, b, whole) to the first step, which
  // then starts the copies of one after the other into its parts of shared memory; `whole` is std::true_type
  // for some of the first `whole_steps`.
  template <class Start, class Copy>
  __device__ __forceinline__ void multiply(Sums& sums, int steps, int whole_steps, const Start& start,
                                           const Copy& copy) const {
    start();
    add_up<Math>(sums, steps, whole_steps, copy);
    if constexpr (std::is_void_v<typename Math::Careful>) {
      __syncthreads();
    } else if (__syncthreads_or(has_nan(sums))) {
      start();
      add_up<typename Math::Careful>(sums, steps, 0, copy);
      __syncthreads();
    }
  }

  // The column of the tile where all of this thread's runs begin.
  __device__ int run_col() const { return warp_col() + thread_now() % 32 % kLanesPerRow * 4; }

  // f(row, values) for each run of this thread: values[e] is the sum at (row, run_col() + e) of the tile.
  // Through shared memory, a strip of 16 rows of a warp at a time, so that rows of C are written as such.
  template <class F>
  __device__ __forceinline__ void for_each_run(const Sums& sums, const F& f) const {
    static_assert(16 * kPitch * sizeof(float) * (kThreads / 32) <= kAllBytes);
    const int thread = thread_now(), lane = thread % 32;
    float* strip = reinterpret_cast<float*>(shared_) + thread / 32 * 16 * kPitch;
#pragma unroll 1
    for (int i = 0; i < A::kFragments; ++i) {
#pragma unroll
      for (int fragment = 0; fragment < A::kFragments; ++fragment) {
        if (fragment != i) continue;  // registers have no addresses
        store_strip(strip, lane, sums[fragment]);
      }
      __syncwarp();
#pragma unroll 1
      for (int r = lane / kLanesPerRow; r < 16; r += 32 / kLanesPerRow) {
        const float4 four = *reinterpret_cast<const float4*>(strip + r * kPitch + lane % kLanesPerRow * 4);
        float values[4] = {four.x, four.y, four.z, four.w};
        f(warp_row() + A::row_of(i, r / 8, r % 8), values);
      }
      __syncwarp();
    }
    __syncthreads();
  }

 private:
  // What follows from the thread's number is not kept in registers.
  __device__ static int thread_now() { return computed_anew(static_cast<int>(threadIdx.x)); }

  // Where the warp's part of the tile begins.
  __device__ static int warp_row() { return thread_now() / 32 % (kT.rows / kT.warp_rows) * kT.warp_rows; }
  __device__ static int warp_col() { return thread_now() / 32 / (kT.rows / kT.warp_rows) * kT.warp_cols; }

  // What multiply() does, with any arithmetic; without the barrier after which shared memory is free again.
  template <class AnyMath, class Copy>
  __device__ __forceinline__ void add_up(Sums& sums, int steps, int whole_steps, const Copy& copy) const {
    constexpr int kBuffers = AnyMath::kFragmentBuffers;
    std::uint32_t a[kBuffers][A::kFragments][4], b[kBuffers][B::kFragments][4];
    // Stages are named by their offsets, which are the same for all threads: instructions add them without
    // further ado.
    const auto load_fragments = [&](auto part, std::uint32_t stage) {
      read_a_.template load<part>(a[part % kBuffers], stage);
      read_b_.template load<part>(b[part % kBuffers], stage);
    };
    const auto copy_step = [&](int step, std::uint32_t stage, auto whole) {
      if (whole || step < steps) copy(step, stages_ + stage, stages_ + stage + A::kBytes, whole);
      copy_async_commit();
    };
    // K-step `step`, which lies in stage `read`, and the next one in `next`. The fragments of a part are
    // loaded while the part before it is multiplied. A stage is free for the copy of a later step, `free`,
    // once all warps have passed the barrier: they have loaded its last fragments.
    const auto multiply_step = [&](int step, std::uint32_t free, std::uint32_t read, std::uint32_t next,
                                   auto whole) {
      unrolled<kParts>([&](auto part) {
        constexpr std::integral_constant<int, (part + 1) % kParts> kNext;
        if constexpr (kNext == 0) {
          copy_async_wait<kT.stages - 2>();
          __syncthreads();
        }
        const bool more = whole || kNext != 0 || step + 1 < steps;
        if (kBuffers == 2 && more) load_fragments(kNext, kNext == 0 ? next : read);
        if constexpr (part == 0) copy_step(step + kT.stages - 1, free, whole);
        AnyMath::multiply(sums, a[part % kBuffers], b[part % kBuffers]);
        if (kBuffers == 1 && more) load_fragments(kNext, kNext == 0 ? next : read);
      });
    };

#pragma unroll
    for (auto& fragment : sums) {
#pragma unroll
      for (auto& part : fragment) part[0] = part[1] = part[2] = part[3] = 0;
    }
#pragma unroll 1
    for (int step = 0; step < kT.stages - 1; ++step) copy_step(step, step * kStageBytes, std::false_type{});
    copy_async_wait<kT.stages - 2>();
    __syncthreads();
    if (steps > 0) load_fragments(std::integral_constant<int, 0>{}, 0);
    int step = 0;
    std::uint32_t read = 0;
    if constexpr (kT.stages == 4) {
      // Two steps at a time share what a loop costs: they are in one half of the stages.
#pragma unroll 1
      for (; step + kT.stages < whole_steps; step += 2) {
        const std::uint32_t other = 2 * kStageBytes - read;
        multiply_step(step, other + kStageBytes, read, read + kStageBytes, std::true_type{});
        multiply_step(step + 1, read, read + kStageBytes, other, std::true_type{});
        read = other;
      }
    }
    std::uint32_t free = read == 0 ? kAllBytes - kStageBytes : read - kStageBytes;
    const auto multiply_steps = [&](int end, auto whole) {
#pragma unroll 1
      for (; step < end; ++step) {
        const std::uint32_t next = read + kStageBytes == kAllBytes ? 0 : read + kStageBytes;
        multiply_step(step, free, read, next, whole);
        free = read;
        read = next;
      }
    };
    if constexpr (kT.stages != 4) multiply_steps(whole_steps - (kT.stages - 1), std::true_type{});
    multiply_steps(steps, std::false_type{});
  }

  __device__ __forceinline__ static bool has_nan(const Sums& sums) {
    bool nan = false;
#pragma unroll
    for (const auto& fragment : sums) {
#pragma unroll
      for (const auto& part : fragment) {
#pragma unroll
        for (const float sum : part) nan = nan || isnan(sum);
      }
    }
    return nan;
  }

  // 16 rows of the warp's sums into its strip, in vectors of neighbours: row_of() of B makes them four or
  // two.
  __device__ __forceinline__ static void store_strip(float* strip, int lane,
                                                     const float (&sums)[2 * B::kFragments][4]) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      float* row = strip + (lane / 4 + 4 * e) * kPitch;
#pragma unroll
      for (int j = 0; j < 2 * B::kFragments; j += 2) {
        const auto at = [&](int h) { return shared_address(row + B::row_of(j / 2, h, lane % 4 * 2)); };
        if constexpr (B::kWords) {
          store_shared(at(0), sums[j][e], sums[j + 1][e], sums[j][e + 1], sums[j + 1][e + 1]);
        } else {
          store_shared(at(0), sums[j][e], sums[j][e + 1]);
          store_shared(at(1), sums[j + 1][e], sums[j + 1][e + 1]);
        }
      }
    }
  }

  // Of a strip's rows: these vectors of a quarter or half of the warp then are in different banks.
  static constexpr int kPitch = kT.warp_cols + (B::kWords ? 16 : 8);
  static constexpr int kParts = kT.step_bytes / 32;  // of a K-step: the depth of one mma each
  static constexpr std::uint32_t kStageBytes = A::kBytes + B::kBytes;
  static constexpr std::uint32_t kAllBytes = kStageBytes * kT.stages;
  static_assert(kAllBytes == kT.shared_bytes());
  static constexpr int kLanesPerRow = kT.warp_cols / 4;

  unsigned char* shared_;
  std::uint32_t stages_;
  typename A::Reader read_a_;
  typename B::Reader read_b_;
};

}  // namespace ergon::kernels::cuda::gemm_detail
