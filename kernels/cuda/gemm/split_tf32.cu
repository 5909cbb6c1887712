// Tensor-core kernels for fp32 operands at fp32's accuracy: three passes of tf32.

#include "kernels/cuda/gemm/tensor_core.cuh"

namespace ergon::kernels::cuda::gemm_detail {

TensorCoreKernel* split_tf32_kernel(int tile, bool a_depth, bool b_depth) {
  return kernel_of<SplitTf32Math>(tile, a_depth, b_depth);
}

}  // namespace ergon::kernels::cuda::gemm_detail
