#include "kernels/cuda/common/any_dtype.cuh"
#include "kernels/cuda/common/column_sum.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kColumns = kWarpSize;  // of a block, side by side
constexpr int kShares = 8;           // each thread of a column adds up every eighth partial

template <class Acc>
__global__ void __launch_bounds__(kColumns* kShares)
    sum_partials_kernel(const Acc* partials, std::int64_t count, std::int64_t stride, std::int64_t cols,
                        void* out, DType dtype) {
  __shared__ Acc sums[kShares][kColumns];
  const std::int64_t c = std::int64_t{blockIdx.x} * kColumns + threadIdx.x;
  Acc sum = 0;
  if (c < cols) {
#pragma unroll 4
    for (std::int64_t k = threadIdx.y; k < count; k += kShares) sum += partials[k * stride + c];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= cols) return;
#pragma unroll
  for (int share = 1; share < kShares; ++share) sum += sums[share][threadIdx.x];
  store_as<Acc, 1>(out, dtype, c, {sum});
}

}  // namespace

void sum_partials(const void* partials, std::int64_t count, std::int64_t stride, std::int64_t cols,
                  const RowMatrix& out) {
  const auto blocks = static_cast<unsigned>((cols + kColumns - 1) / kColumns);
  const auto launch = [&](auto tag) {
    using Acc = typename decltype(tag)::type;
    sum_partials_kernel<<<blocks, dim3(kColumns, kShares), 0, stream()>>>(
        static_cast<const Acc*>(partials), count, stride, cols, out.data, out.dtype);
    CUDA_CHECK_LAUNCH();
  };
  out.dtype == DType::f64 ? launch(TypeTag<double>{}) : launch(TypeTag<float>{});
}

}  // namespace ergon::kernels::cuda
