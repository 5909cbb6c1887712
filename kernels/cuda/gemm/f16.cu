// Tensor-core kernels for f16 operands.

#include "kernels/cuda/gemm/tensor_core.cuh"

namespace ergon::kernels::cuda::gemm_detail {

TensorCoreKernel* f16_kernel(int tile, bool a_depth, bool b_depth) {
  return kernel_of<F16Math>(tile, a_depth, b_depth);
}

}  // namespace ergon::kernels::cuda::gemm_detail
