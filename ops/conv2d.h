#pragma once

#include <array>
#include <cstdint>

#include "core/tensor.h"

namespace ergon::ops {

// Height first in every pair.
struct Conv2dOptions {
  std::array<std::int64_t, 2> stride{1, 1};
  std::array<std::int64_t, 2> padding{0, 0};  // zeros on both sides
  std::array<std::int64_t, 2> dilation{1, 1};
  std::int64_t groups = 1;
};

// Convolution as neural networks mean it (cross-correlation), differentiable.
//   x       (N, C, H, W)
//   weight  (O, C / groups, kH, kW)
//   bias    (O), or undefined
// Returns (N, O, oH, oW) with oH = (H + 2 padding - dilation (kH - 1) - 1) / stride + 1. One floating dtype;
// bf16 and f16 accumulate in fp32. Deterministic. Throws Error naming the shapes if they do not fit together.
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
              const Conv2dOptions& options = {});

}  // namespace ergon::ops
