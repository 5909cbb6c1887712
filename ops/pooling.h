#pragma once

#include <array>
#include <cstdint>

#include "core/tensor.h"

namespace ergon::ops {

// Height first in every pair.
struct Pool2dOptions {
  std::array<std::int64_t, 2> kernel{2, 2};
  std::array<std::int64_t, 2> stride{0, 0};   // 0: the kernel's size
  std::array<std::int64_t, 2> padding{0, 0};  // at most half the kernel
  bool count_include_pad = true;              // average: positions in the padding count for the divisor
};

// x (N, C, H, W), any floating dtype → (N, C, oH, oW) with oH = (H + 2 padding - kH) / stride + 1,
// differentiable. Throws Error naming the shape and the option that does not fit.
//
// The maximum of each window; padding never wins. The first of equals gets the gradient; NaN wins.
Tensor max_pool2d(const Tensor& x, const Pool2dOptions& options = {});
// The mean of each window, the padding taken as zeros.
Tensor avg_pool2d(const Tensor& x, const Pool2dOptions& options = {});
// The mean of each plane: (N, C).
Tensor global_avg_pool2d(const Tensor& x);

}  // namespace ergon::ops
