#pragma once

// The tensor-core kernel: tiles of C, one after the other, from a pipeline of K-steps in shared memory.
// docs/gemm.md explains it.

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/kernel.h"
#include "kernels/cuda/gemm/math.cuh"
#include "kernels/cuda/gemm/operand.cuh"

namespace ergon::kernels::cuda::gemm_detail {

// A tile of one matrix, and a range of K.
struct WorkItem {
  std::int64_t outer, inner;
  int row, col, split;
};

// Item `index`: splits outermost, then matrices; within a matrix, strips of kStrip tiles' height, each from
// left to right, so that blocks at work at one time read few rows of A and columns of B, and find them in L2.
__device__ __forceinline__ WorkItem work_item(const TensorCoreArguments& p, int index, int rows, int cols) {
  constexpr int kStrip = 8;
  const int per_matrix = p.tiles_m * p.tiles_n;
  const int split = index / p.tiles;
  const int tile = index % p.tiles % per_matrix;
  const int batch = index % p.tiles / per_matrix;
  const int per_strip = kStrip * p.tiles_n;
  const int first = tile / per_strip * kStrip;
  const int height = min(p.tiles_m - first, kStrip);
  return {batch / p.batch_inner, batch % p.batch_inner, (first + tile % per_strip % height) * rows,
          tile % per_strip / height * cols, split};
}

template <class Math, int kTile, bool kADepth, bool kBDepth>
__global__ void __launch_bounds__(kTiles[kTile].threads(), kTiles[kTile].blocks)
    tensor_core_gemm_kernel(const __grid_constant__ TensorCoreArguments p) {
  using T = typename Math::Element;
  constexpr Tile kT = kTiles[kTile];
  constexpr int kThreads = kT.threads();
  using OperandA = Operand<T, true, kT.rows, kT.step_bytes, kADepth, kT.warp_rows, kThreads>;
  using OperandB = Operand<T, false, kT.cols, kT.step_bytes, kBDepth, kT.warp_cols, kThreads>;
  constexpr int kDepth = OperandA::kDepth;
  constexpr int kParts = kT.step_bytes / 32;  // of a K-step: the depth of one mma each
  constexpr std::uint32_t kStageBytes = OperandA::kBytes + OperandB::kBytes;
  constexpr std::uint32_t kAllBytes = kStageBytes * kT.stages;
  static_assert(kAllBytes == kT.shared_bytes());

  extern __shared__ __align__(128) unsigned char shared[];
  const std::uint32_t stages = shared_address(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp % (kT.rows / kT.warp_rows) * kT.warp_rows;
  const int warp_col = warp / (kT.rows / kT.warp_rows) * kT.warp_cols;
  typename OperandA::Copy copy_a;
  typename OperandB::Copy copy_b;
  const typename OperandA::Reader read_a(warp_row, stages);
  const typename OperandB::Reader read_b(warp_col, stages + OperandA::kBytes);

  for (int index = static_cast<int>(blockIdx.x); index < p.tiles * p.splits;
       index += static_cast<int>(gridDim.x)) {
    const WorkItem item = work_item(p, index, kT.rows, kT.cols);
    const int first_depth = item.split * p.steps_per_split * kDepth;
    const int depth = max(min(p.K - first_depth, p.steps_per_split * kDepth), 0);  // of this split
    const int steps = (depth + kDepth - 1) / kDepth;
    // Steps before this one lie within the matrices.
    const bool inside = item.row + kT.rows <= p.M && item.col + kT.cols <= p.N && p.a.bytes_at_a_time == 16
                        && p.b.bytes_at_a_time == 16;
    const int whole_steps = inside ? depth / kDepth : 0;
    copy_a.start(
        p.a, static_cast<const T*>(p.a.data) + item.outer * p.a.outer_stride + item.inner * p.a.inner_stride,
        item.row, first_depth, p.M, first_depth + depth);
    copy_b.start(
        p.b, static_cast<const T*>(p.b.data) + item.outer * p.b.outer_stride + item.inner * p.b.inner_stride,
        item.col, first_depth, p.N, first_depth + depth);
    const auto copy_step = [&](int step, std::uint32_t stage, auto whole) {
      if constexpr (whole) {
        copy_a.whole_step(stage);
        copy_b.whole_step(stage + OperandA::kBytes);
      } else if (step < steps) {
        copy_a.step(p.a, stage, step);
        copy_b.step(p.b, stage + OperandA::kBytes, step);
      }
      copy_async_commit();
    };

    float sums[OperandA::kFragments][2 * OperandB::kFragments][4] = {};
    constexpr int kBuffers = Math::kFragmentBuffers;
    std::uint32_t a[kBuffers][OperandA::kFragments][4], b[kBuffers][OperandB::kFragments][4];
    // Offsets of stages; they are the same for all threads, and instructions add them without further ado.
    std::uint32_t read_stage = 0, write_stage = kAllBytes - kStageBytes;
    const auto load_fragments = [&](auto part) {
      read_a.template load<part>(a[part % kBuffers], read_stage);
      read_b.template load<part>(b[part % kBuffers], read_stage);
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
        if constexpr (part == 0) copy_step(step + kT.stages - 1, stages + write_stage, whole);
        Math::multiply(sums, a[part % kBuffers], b[part % kBuffers]);
        if (kBuffers == 1 && more) load_fragments(kNext);
      });
    };

#pragma unroll 1
    for (int step = 0; step < kT.stages - 1; ++step) {
      copy_step(step, stages + step * kStageBytes, std::false_type{});
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

    // Through shared memory, a strip of 16 rows of a warp at a time, so that rows of C are written as such.
    constexpr int kPitch = kT.warp_cols + 8;
    static_assert(16 * kPitch * sizeof(float) * (kThreads / 32) <= kAllBytes);
    float* strip = reinterpret_cast<float*>(shared) + warp * 16 * kPitch;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int same_index = index;
    asm volatile(""
                 : "+r"(same_index));  // computes `out` anew, rather than keep `item` in registers until here
    const WorkItem out = work_item(p, same_index, kT.rows, kT.cols);
    const std::int64_t matrix = out.split * p.split_stride + out.outer * p.epilogue.outer_stride
                                + out.inner * p.epilogue.inner_stride;
#pragma unroll 1
    for (int i = 0; i < OperandA::kFragments; ++i) {
#pragma unroll
      for (int fragment = 0; fragment < OperandA::kFragments; ++fragment) {
        if (fragment != i) continue;  // registers have no addresses
#pragma unroll
        for (int j = 0; j < 2 * OperandB::kFragments; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            strip[(lane / 4 + e / 2 * 8) * kPitch + OperandB::row_of(j / 2, j % 2, lane % 4 * 2 + e % 2)] =
                sums[fragment][j][e];
          }
        }
      }
      __syncwarp();
      constexpr int kLanesPerRow = kT.warp_cols / 4;
#pragma unroll 1
      for (int r = lane / kLanesPerRow; r < 16; r += 32 / kLanesPerRow) {
        const int from_col = lane % kLanesPerRow * 4;
        const float4 four = *reinterpret_cast<const float4*>(strip + r * kPitch + from_col);
        float values[4] = {four.x, four.y, four.z, four.w};
        const int row = out.row + warp_row + OperandA::row_of(i, r / 8, r % 8);
        const int col = out.col + warp_col + from_col;
        if (row < p.M && col < p.N) finish(p.epilogue, values, matrix, row, col, min(p.N - col, 4));
      }
      __syncwarp();
    }
    __syncthreads();
  }
}

// The kernel of one kind of arithmetic for kTiles[tile], for kernel.h.
template <class Math, int kTile = 0>
TensorCoreKernel* kernel_of(int tile, bool a_depth, bool b_depth) {
  if constexpr (kTile == kTileCount) {
    return nullptr;
  } else if constexpr (!Math::has_tile(kTile)) {
    return kernel_of<Math, kTile + 1>(tile, a_depth, b_depth);
  } else {
    if (tile != kTile) return kernel_of<Math, kTile + 1>(tile, a_depth, b_depth);
    if (a_depth) {
      return b_depth ? tensor_core_gemm_kernel<Math, kTile, true, true>
                     : tensor_core_gemm_kernel<Math, kTile, true, false>;
    }
    return b_depth ? tensor_core_gemm_kernel<Math, kTile, false, true>
                   : tensor_core_gemm_kernel<Math, kTile, false, false>;
  }
}

}  // namespace ergon::kernels::cuda::gemm_detail
