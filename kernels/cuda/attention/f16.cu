// Tensor-core kernels for f16 operands.

#include "kernels/cuda/attention/forward.cuh"

namespace ergon::kernels::cuda::attention_detail {

void launch_f16_forward(const Arguments& arguments) { launch_forward<f16>(arguments); }

}  // namespace ergon::kernels::cuda::attention_detail
