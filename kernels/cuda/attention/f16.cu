// Tensor-core kernels for f16 operands.

#include "kernels/cuda/attention/backward.cuh"
#include "kernels/cuda/attention/forward.cuh"

namespace ergon::kernels::cuda::attention_detail {

void launch_f16_forward(const Arguments& arguments) { launch_forward<f16>(arguments); }
void launch_f16_backward(const Arguments& arguments) { launch_backward<f16>(arguments); }

}  // namespace ergon::kernels::cuda::attention_detail
