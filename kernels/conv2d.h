#pragma once

// Two-dimensional convolution (cross-correlation), strided, dilated, in groups.

#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

// Height first in every pair.
struct Conv2dGeometry {
  std::int64_t batch = 0;
  std::int64_t in_channels = 0, out_channels = 0, groups = 1;
  std::array<std::int64_t, 2> input{}, kernel{}, output{};
  std::array<std::int64_t, 2> stride{1, 1}, padding{}, dilation{1, 1};

  constexpr std::int64_t group_inputs() const { return in_channels / groups; }
  constexpr std::int64_t group_outputs() const { return out_channels / groups; }
  // Products that are summed to one output element.
  constexpr std::int64_t taps() const { return group_inputs() * kernel[0] * kernel[1]; }
};

// y[n,o,i,j] = bias[o] + sum_{c,a,b} w[o,c,a,b] x[n, c', i*sh - ph + a*dh, j*sw - pw + b*dw]
// over the channels c' of o's group; x is 0 outside.
//
// x, dx  (batch, in_channels, input)               contiguous
// w, dw  (out_channels, in_channels/groups, kernel) contiguous
// y, dout (batch, out_channels, output)             contiguous
// bias   (out_channels), null: none
// All of one dtype: f32 | bf16 | f16 | f64. Nothing may overlap.
//
// Accumulates in fp32 (f64 for f64) and rounds once. An element of y is one sum over taps() in order:
// relative error below (taps() + 1) * 2^-24 of the sum of magnitudes. dx likewise, over at most
// group_outputs() * kernel products; dw over batch * output products, images in chunks. All results are =
// (not +=) and the same bits for any number of threads. Flops of each: 2 * y's elements * taps().
// workspace: conv2d_workspace() bytes of the pass, aligned to 16; null where that is 0.
enum class Conv2dPass : std::uint8_t { forward, backward_input, backward_weight };

// Scratch: a padded copy of one image and one output a thread (some images for dw), kept between calls.
namespace cpu {

std::int64_t conv2d_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& geometry);
void conv2d_forward(DType dtype, const Conv2dGeometry& geometry, const void* x, const void* w,
                    const void* bias, void* y, void* workspace);
void conv2d_backward_input(DType dtype, const Conv2dGeometry& geometry, const void* dout, const void* w,
                           void* dx, void* workspace);
void conv2d_backward_weight(DType dtype, const Conv2dGeometry& geometry, const void* x, const void* dout,
                            void* dw, void* workspace);

}  // namespace cpu

// Products with a matrix that is never stored: its elements are gathered tile by tile ("implicit GEMM",
// Chetlur et al., arXiv 1410.0759). On tensor cores for one group of channels of f32, bf16 or f16, unless
// bf16 or f16 have a single channel on either side; then each f32 product is within 2^-19, and the workspace
// holds x or dout with the channels last. dw is summed in a number of parts that the geometry alone
// determines. All tensors below 2^31 elements, else Error.
namespace cuda {

std::int64_t conv2d_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& geometry);
void conv2d_forward(DType dtype, const Conv2dGeometry& geometry, const void* x, const void* w,
                    const void* bias, void* y, void* workspace);
void conv2d_backward_input(DType dtype, const Conv2dGeometry& geometry, const void* dout, const void* w,
                           void* dx, void* workspace);
void conv2d_backward_weight(DType dtype, const Conv2dGeometry& geometry, const void* x, const void* dout,
                            void* dw, void* workspace);

}  // namespace cuda
}  // namespace ergon::kernels
