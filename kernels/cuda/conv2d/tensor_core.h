#pragma once

// Convolution on tensor cores, as the host sees it: products with gathered matrices (gather.h), in the
// pipeline of the matrix product (kernels/cuda/gemm/tile_product.cuh).
//
//                     C (M, N)                                  K
//   forward           outputs, pixels of y                      (kernel, inputs)
//   backward input    inputs, pixels of dx of one residue       (kernel, outputs)
//   backward weight   outputs, (kernel, inputs)                 pixels of y, in splits
//
// x and dout are copied to channels last, their channels filled up with zeros to multiples of 16 bytes, and
// the weights into the order of K: every copy of 16 bytes then lies within one pixel and one tap.

#include "kernels/conv2d.h"

namespace ergon::kernels::cuda::conv2d_detail {

// One group of channels, f32, bf16 or f16, and channels that do not become more than four times as many by
// filling up: what tensor cores gain is then more than the zeros cost.
bool uses_tensor_cores(DType dtype, const Conv2dGeometry& g);

std::int64_t tensor_core_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& g);
void tensor_core_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                         void* y, void* workspace);
void tensor_core_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w,
                                void* dx, void* workspace);
void tensor_core_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout,
                                 void* dw, void* workspace);

}  // namespace ergon::kernels::cuda::conv2d_detail
