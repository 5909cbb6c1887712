// kernels/grad_scale.h on CUDA: a block takes a chunk of a tensor.

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/optimizer/tensors.cuh"
#include "kernels/grad_scale.h"

namespace ergon::kernels::cuda {
namespace {

// The chunk's sum of squares of this thread's elements; the gradients are multiplied by `factor` after they
// were read, unless it is 1.
template <class Acc>
__device__ __forceinline__ Acc check_chunk(const OptimizerTensor& t, Acc factor) {
  const int half = t.dtype == DType::f32 ? 16 : 8;
  constexpr int kElements = kLaneElements<Acc>;
  Acc sum = 0;
  for_each_row<Acc>(t, address_bits(t.grad) % half == 0, [&](const auto& row) {
    with_storage<Acc>(t.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      Acc grad[kElements];
      row.template load<T>(t.grad, grad);
#pragma unroll
      for (int k = 0; k < kElements; ++k) sum += grad[k] * grad[k];
      if (factor == 1) return;
#pragma unroll
      for (int k = 0; k < kElements; ++k) grad[k] *= factor;
      row.template store<T>(t.grad, grad);
    });
  });
  return sum;
}

__global__ void __launch_bounds__(kStepThreads) check_gradients_kernel(GradCheck p, int count) {
  __shared__ double scratch[kStepThreads / kWarpSize];
  __shared__ bool is_last;
  if (p.tensors.chunks > 0) {
    const OptimizerTensor t = tensor_of_block(p.tensors.device, count);
    const double factor = p.unscale ? 1 / static_cast<double>(*p.loss_scale) : 1;
    double sum = t.dtype == DType::f64
                     ? check_chunk<double>(t, factor)
                     : static_cast<double>(check_chunk<float>(t, static_cast<float>(factor)));
    sum = block_reduce<Sum, kStepThreads>(sum, scratch);
    if (threadIdx.x == 0) p.partials[blockIdx.x] = sum;
  }
  // The last block to come here sees what all have written.
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(p.tensors.blocks_done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  double total = 0;
  for (std::int64_t i = threadIdx.x; i < p.tensors.chunks; i += kStepThreads) total += p.partials[i];
  total = block_reduce<Sum, kStepThreads>(total, scratch);
  if (threadIdx.x > 0) return;
  *p.tensors.blocks_done = 0;
  p.finish(sqrt(total));
}

__global__ void update_scale_kernel(ScaleUpdate update) { update.apply(); }

}  // namespace

void check_gradients(const GradCheck& p) {
  const auto blocks = static_cast<unsigned>(std::max<std::int64_t>(p.tensors.chunks, 1));
  check_gradients_kernel<<<blocks, kStepThreads, 0, stream()>>>(p, static_cast<int>(p.tensors.list.size()));
  CUDA_CHECK_LAUNCH();
}

void update_scale(const ScaleUpdate& update) {
  update_scale_kernel<<<1, 1, 0, stream()>>>(update);
  CUDA_CHECK_LAUNCH();
}

}  // namespace ergon::kernels::cuda
