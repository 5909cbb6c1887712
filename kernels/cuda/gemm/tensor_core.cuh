#pragma once

// The tensor-core kernel: tiles of C, one after the other, from a pipeline of K-steps in shared memory.
// docs/gemm.md explains it.

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/kernel.h"
#include "kernels/cuda/gemm/tile_product.cuh"

namespace ergon::kernels::cuda::gemm_detail {

// A tile of one matrix, and a range of K.
struct WorkItem {
  std::int64_t outer, inner;
  int row, col, split;
  int depth_begin, depth_end;
};

// Item `index`: splits outermost, then matrices; within a matrix, strips of kStrip tiles' height, each from
// left to right, so that blocks at work at one time read few rows of A and columns of B, and find them in L2.
__device__ __forceinline__ WorkItem work_item(const TensorCoreArguments& p, int index, int rows, int cols,
                                              int depth_of_step) {
  constexpr int kStrip = 8;
  const int per_matrix = p.tiles_m * p.tiles_n;
  const int split = index / p.tiles;
  const int tile = index % p.tiles % per_matrix;
  const int batch = index % p.tiles / per_matrix;
  const int per_strip = kStrip * p.tiles_n;
  const int first = tile / per_strip * kStrip;
  const int height = min(p.tiles_m - first, kStrip);
  const int depth = p.steps_per_split * depth_of_step, begin = min(split * depth, p.K);
  return {batch / p.batch_inner,
          batch % p.batch_inner,
          (first + tile % per_strip % height) * rows,
          tile % per_strip / height * cols,
          split,
          begin,
          begin + min(depth, p.K - begin)};
}

template <class Math, int kTile, bool kADepth, bool kBDepth>
__global__ void __launch_bounds__(kTiles[kTile].threads(), kTiles[kTile].blocks)
    tensor_core_gemm_kernel(const __grid_constant__ TensorCoreArguments p) {
  using T = typename Math::Element;
  using Product = TileProduct<Math, kTile, kADepth, kBDepth>;
  constexpr Tile kT = kTiles[kTile];
  constexpr int kDepth = Product::kDepth;

  extern __shared__ __align__(128) unsigned char shared[];
  const Product product(shared);
  typename Product::A::Copy copy_a;
  typename Product::B::Copy copy_b;

  for (int index = static_cast<int>(blockIdx.x); index < p.tiles * p.splits;
       index += static_cast<int>(gridDim.x)) {
    const auto item_now = [&] { return work_item(p, computed_anew(index), kT.rows, kT.cols, kDepth); };
    const WorkItem item = item_now();
    const int depth = item.depth_end - item.depth_begin;
    // Steps before this one lie within the matrices.
    const bool inside = item.row + kT.rows <= p.M && item.col + kT.cols <= p.N && p.a.bytes_at_a_time == 16
                        && p.b.bytes_at_a_time == 16;
    const int whole_steps = inside ? depth / kDepth : 0;
    typename Product::Sums sums;
    product.multiply(
        sums, (depth + kDepth - 1) / kDepth, whole_steps,
        [&] {
          const WorkItem in = item_now();
          const auto matrix = [&](const Source& source) {
            return static_cast<const T*>(source.data) + in.outer * source.outer_stride
                   + in.inner * source.inner_stride;
          };
          copy_a.start(p.a, matrix(p.a), in.row, in.depth_begin, p.M, in.depth_end);
          copy_b.start(p.b, matrix(p.b), in.col, in.depth_begin, p.N, in.depth_end);
        },
        [&](int step, std::uint32_t stage_a, std::uint32_t stage_b, auto whole) {
          if constexpr (whole) {
            copy_a.whole_step(stage_a);
            copy_b.whole_step(stage_b);
          } else {
            copy_a.step(p.a, stage_a, step);
            copy_b.step(p.b, stage_b, step);
          }
        });

    const WorkItem out = item_now();
    const std::int64_t matrix = out.split * p.split_stride + out.outer * p.epilogue.outer_stride
                                + out.inner * p.epilogue.inner_stride;
    const int col = out.col + product.run_col();
    product.for_each_run(sums, [&](int tile_row, float(&values)[4]) {
      const int row = out.row + tile_row;
      if (row < p.M && col < p.N) finish(p.epilogue, values, matrix, row, col, min(p.N - col, 4));
    });
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
