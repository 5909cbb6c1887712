#pragma once

// Convolution without tensor cores, as the host sees it.

#include "kernels/conv2d.h"

namespace ergon::kernels::cuda::conv2d_detail {

// Any dtype, any groups: one multiplication at a time. Only the weights' pass has a workspace.
std::int64_t simt_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& g);
void simt_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                  void* y);
void simt_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w, void* dx);
void simt_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout, void* dw,
                          void* workspace);

}  // namespace ergon::kernels::cuda::conv2d_detail
