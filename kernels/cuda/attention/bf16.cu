// Tensor-core kernels for bf16 operands.

#include "kernels/cuda/attention/backward.cuh"
#include "kernels/cuda/attention/forward.cuh"

namespace ergon::kernels::cuda::attention_detail {

void launch_bf16_forward(const Arguments& arguments) { launch_forward<bf16>(arguments); }
void launch_bf16_backward(const Arguments& arguments) { launch_backward<bf16>(arguments); }

}  // namespace ergon::kernels::cuda::attention_detail
