// The contract of kernels/conv2d.h on CUDA.

#include "kernels/conv2d.h"

#include <algorithm>

#include "core/error.h"
#include "kernels/cuda/conv2d/simt.h"
#include "kernels/cuda/conv2d/tensor_core.h"
#include "kernels/cuda/providers/cudnn.h"
#include "kernels/providers.h"

namespace ergon::kernels::cuda {
namespace {

using namespace conv2d_detail;  // NOLINT: the other half of this file

void check(const Conv2dGeometry& g) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  const std::int64_t x = g.batch * g.in_channels * g.input[0] * g.input[1],
                     y = g.batch * g.out_channels * g.output[0] * g.output[1], w = g.out_channels * g.taps();
  ERGON_CHECK(
      x < kLimit && y < kLimit && w < kLimit,
      "[conv2d] {} elements of x, {} of weight, {} of the output on cuda: expected fewer than 2^31 of "
      "each",
      x, w, y);
}

bool by_cudnn() { return conv_provider() == ConvProvider::cudnn; }

}  // namespace

std::int64_t conv2d_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& g) {
  const std::int64_t bytes =
      uses_tensor_cores(dtype, g) ? tensor_core_workspace(pass, dtype, g) : simt_workspace(pass, dtype, g);
  return by_cudnn() ? std::max(bytes, cudnn_workspace(pass, dtype, g)) : bytes;
}

void conv2d_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                    void* y, void* workspace) {
  check(g);
  if (by_cudnn() && cudnn_forward(dtype, g, x, w, bias, y, workspace)) return;
  if (uses_tensor_cores(dtype, g)) return tensor_core_forward(dtype, g, x, w, bias, y, workspace);
  simt_forward(dtype, g, x, w, bias, y);
}

void conv2d_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w, void* dx,
                           void* workspace) {
  check(g);
  if (by_cudnn() && cudnn_backward_input(dtype, g, dout, w, dx, workspace)) return;
  if (uses_tensor_cores(dtype, g)) return tensor_core_backward_input(dtype, g, dout, w, dx, workspace);
  simt_backward_input(dtype, g, dout, w, dx);
}

void conv2d_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout, void* dw,
                            void* workspace) {
  check(g);
  if (by_cudnn() && cudnn_backward_weight(dtype, g, x, dout, dw, workspace)) return;
  if (uses_tensor_cores(dtype, g)) return tensor_core_backward_weight(dtype, g, x, dout, dw, workspace);
  simt_backward_weight(dtype, g, x, dout, dw, workspace);
}

}  // namespace ergon::kernels::cuda
