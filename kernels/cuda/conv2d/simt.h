#pragma once

// Convolution without tensor cores, as the host sees it.

#include "kernels/conv2d.h"

namespace ergon::kernels::cuda::conv2d_detail {

// Parts of the sum over all pixels, each of which one block adds up.
int weight_splits(const Conv2dGeometry& g);

// Any dtype, any groups: one multiplication at a time. `workspace` as of weight_splits() tensors of dw.
void simt_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                  void* y);
void simt_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w, void* dx);
void simt_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout, void* dw,
                          void* workspace);

}  // namespace ergon::kernels::cuda::conv2d_detail
