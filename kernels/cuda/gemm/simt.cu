// The matrix product without tensor cores: f64, operands of different dtypes, strides beyond 32 bits.

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/epilogue.h"
#include "kernels/cuda/gemm/kernel.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

constexpr int kTile = 16;  // rows and columns of C to a block, and depth of a step

struct SimtArguments {
  GemmOperand<const void*> a, b;
  std::int64_t M, N, K, batches, batch_inner;
};

template <class Acc>
__device__ __forceinline__ Acc element(const GemmOperand<const void*>& x, std::int64_t matrix, std::int64_t i,
                                       std::int64_t j) {
  return load_element<Acc>(x.data, x.dtype, matrix + i * x.row_stride + j * x.col_stride);
}

template <class Acc>
__global__ void __launch_bounds__(kTile* kTile)
    simt_gemm_kernel(const __grid_constant__ SimtArguments p,
                     const __grid_constant__ Epilogue<Acc> epilogue) {
  __shared__ Acc a[kTile][kTile + 1], b[kTile][kTile + 1];
  const int tx = static_cast<int>(threadIdx.x) % kTile, ty = static_cast<int>(threadIdx.x) / kTile;
  const std::int64_t tiles_m = (p.M + kTile - 1) / kTile, tiles_n = (p.N + kTile - 1) / kTile;
  for (std::int64_t index = blockIdx.x; index < p.batches * tiles_m * tiles_n; index += gridDim.x) {
    const std::int64_t batch = index / (tiles_m * tiles_n);
    const std::int64_t outer = batch / p.batch_inner, inner = batch % p.batch_inner;
    const std::int64_t row = index / tiles_n % tiles_m * kTile, col = index % tiles_n * kTile;
    const std::int64_t matrix_a = outer * p.a.outer_stride + inner * p.a.inner_stride;
    const std::int64_t matrix_b = outer * p.b.outer_stride + inner * p.b.inner_stride;
    Acc sum(0);
    for (std::int64_t k = 0; k < p.K; k += kTile) {
      a[ty][tx] = row + ty < p.M && k + tx < p.K ? element<Acc>(p.a, matrix_a, row + ty, k + tx) : Acc(0);
      b[ty][tx] = k + ty < p.K && col + tx < p.N ? element<Acc>(p.b, matrix_b, k + ty, col + tx) : Acc(0);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kTile; ++i) sum += a[ty][i] * b[i][tx];
      __syncthreads();
    }
    if (row + ty < p.M && col + tx < p.N) {
      Acc one[1] = {sum};
      const std::int64_t matrix_c = outer * epilogue.outer_stride + inner * epilogue.inner_stride;
      finish(epilogue, one, matrix_c, row + ty, col + tx, 1);
    }
  }
}

template <class Acc>
void launch(const GemmParams& p) {
  const SimtArguments arguments{p.a, p.b, p.M, p.N, p.K, p.batch_outer * p.batch_inner, p.batch_inner};
  const std::int64_t tiles = arguments.batches * ((p.M + kTile - 1) / kTile) * ((p.N + kTile - 1) / kTile);
  simt_gemm_kernel<<<static_cast<unsigned>(grid_stride_blocks(tiles, 1, kTile * kTile)), kTile * kTile, 0,
                     stream()>>>(arguments, epilogue_of<Acc>(p));
  CUDA_CHECK_LAUNCH();
}

}  // namespace

void launch_simt(const GemmParams& params) {
  return params.c.dtype == DType::f64 ? launch<double>(params) : launch<float>(params);
}

}  // namespace ergon::kernels::cuda::gemm_detail
