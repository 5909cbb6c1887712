#pragma once

// Two-dimensional pooling.

#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

// Height first in every pair.
struct Pool2dGeometry {
  std::int64_t planes = 0;  // batch * channels
  std::array<std::int64_t, 2> input{}, kernel{}, output{};
  std::array<std::int64_t, 2> stride{1, 1}, padding{};
  bool count_padding = true;  // does the average's divisor count positions in the padding?
};

// x, dx   (planes, input)   contiguous, f32 | bf16 | f16 | f64
// y, dout (planes, output)  contiguous, the same dtype
// index   (planes, output)  i32: where in its plane each maximum lies
//
// Maximum: of the positions inside x; the first of equals, NaN if there is one. dx[index] += dout over
// overlapping windows. Average: the sum over the positions inside, divided by the window's positions (with
// those in the padding, but not those beyond it, if count_padding). padding <= kernel / 2, so no window is
// empty. Sums in fp32 (f64 for f64), in order. dx is = (not +=). Deterministic. Bytes: x (or dx) and y (or
// dout), index.
namespace cpu {

void max_pool2d_forward(DType dtype, const Pool2dGeometry& geometry, const void* x, void* y,
                        std::int32_t* index);
void max_pool2d_backward(DType dtype, const Pool2dGeometry& geometry, const void* dout,
                         const std::int32_t* index, void* dx);
void avg_pool2d_forward(DType dtype, const Pool2dGeometry& geometry, const void* x, void* y);
void avg_pool2d_backward(DType dtype, const Pool2dGeometry& geometry, const void* dout, void* dx);

}  // namespace cpu

// The same on the current stream: an output (forward) or an element of dx (backward, which
// gathers from the windows that cover it) a thread. Fewer than 2^31 of each.
namespace cuda {

void max_pool2d_forward(DType dtype, const Pool2dGeometry& geometry, const void* x, void* y,
                        std::int32_t* index);
void max_pool2d_backward(DType dtype, const Pool2dGeometry& geometry, const void* dout,
                         const std::int32_t* index, void* dx);
void avg_pool2d_forward(DType dtype, const Pool2dGeometry& geometry, const void* x, void* y);
void avg_pool2d_backward(DType dtype, const Pool2dGeometry& geometry, const void* dout, void* dx);

}  // namespace cuda
}  // namespace ergon::kernels
