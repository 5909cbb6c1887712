// Tensor-core kernels for fp32 operands that are rounded to tf32.

#include "kernels/cuda/gemm/tensor_core.cuh"

namespace ergon::kernels::cuda::gemm_detail {

TensorCoreKernel* tf32_kernel(int tile, bool a_depth, bool b_depth) {
  return kernel_of<Tf32Math>(tile, a_depth, b_depth);
}

}  // namespace ergon::kernels::cuda::gemm_detail
