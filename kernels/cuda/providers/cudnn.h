#pragma once

// Convolutions by cuDNN, for comparison. Its library is loaded by the first one.

#include <cstdint>

#include "kernels/conv2d.h"

namespace ergon::kernels::cuda {

// As kernels/conv2d.h says, by cuDNN's first choice among its deterministic algorithms of full precision; a
// bias is added to the rounded result. False, and nothing done, where it has none. Error if the library is
// missing, and in a build without cudnn.h. `workspace`: cudnn_workspace() bytes.
bool cudnn_forward(DType dtype, const Conv2dGeometry& geometry, const void* x, const void* w,
                   const void* bias, void* y, void* workspace);
bool cudnn_backward_input(DType dtype, const Conv2dGeometry& geometry, const void* dout, const void* w,
                          void* dx, void* workspace);
bool cudnn_backward_weight(DType dtype, const Conv2dGeometry& geometry, const void* x, const void* dout,
                           void* dw, void* workspace);

std::int64_t cudnn_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& geometry);

}  // namespace ergon::kernels::cuda
