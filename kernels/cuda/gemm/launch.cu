// Launches of the tensor-core kernels, and the sum over splits of K.

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/kernel.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

constexpr int kThreads = 256;

// One thread adds up four neighbours in a row of C, split after split.
__global__ void __launch_bounds__(kThreads) reduce_splits_kernel(const ReduceArguments p) {
  const std::int64_t runs = (p.N + 3) / 4, all = p.batch_outer * p.batch_inner * p.M * runs;
  for (std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; index < all;
       index += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t col = index % runs * 4, line = index / runs;
    const std::int64_t row = line % p.M, batch = line / p.M;
    const int valid = static_cast<int>(min(p.N - col, std::int64_t{4}));
    float sums[4] = {}, part[4];
    for (int s = 0; s < p.splits; ++s) {
      const Run<float, 4> run{s * p.split_stride + line * p.row_stride + col, 1, valid, valid == 4};
      run.load(p.partial, DType::f32, part);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[e] += part[e];
    }
    const std::int64_t outer = batch / p.batch_inner, inner = batch % p.batch_inner;
    const std::int64_t matrix = outer * p.epilogue.outer_stride + inner * p.epilogue.inner_stride;
    finish(p.epilogue, sums, matrix, row, col, valid);
  }
}

}  // namespace

int resident_blocks_of(TensorCoreKernel* kernel, const Tile& tile) {
  allow_shared_memory(kernel, tile.shared_bytes());
  int blocks = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, tile.threads(),
                                                           static_cast<std::size_t>(tile.shared_bytes())));
  return blocks;
}

void launch_tensor_core(TensorCoreKernel* kernel, const Tile& tile, int blocks,
                        const TensorCoreArguments& arguments) {
  allow_shared_memory(kernel, tile.shared_bytes());
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(tile.threads()),
           static_cast<unsigned>(tile.shared_bytes()), stream()>>>(arguments);
  CUDA_CHECK_LAUNCH();
}

void launch_reduce(const ReduceArguments& arguments) {
  const std::int64_t runs =
      arguments.batch_outer * arguments.batch_inner * arguments.M * ((arguments.N + 3) / 4);
  reduce_splits_kernel<<<static_cast<unsigned>(grid_stride_blocks(runs, kThreads, kThreads)), kThreads, 0,
                         stream()>>>(arguments);
  CUDA_CHECK_LAUNCH();
}

}  // namespace ergon::kernels::cuda::gemm_detail
