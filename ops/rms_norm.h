#pragma once

#include "core/tensor.h"
#include "ops/norm.h"

namespace ergon::ops {

// x / sqrt(mean(x^2) + eps) * weight, the mean over the last dimension (Zhang & Sennrich 2019, arXiv
// 1910.07467). Differentiable.
//   x       (..., features)  f32, bf16, f16 or f64
//   weight  (features)       x's dtype, or f32 with half precision; undefined: 1
// Statistics in fp32 (f64 for f64). Throws Error naming shapes and dtypes if they do not fit together.
Tensor rms_norm(const Tensor& x, const Tensor& weight = {}, double eps = 1e-6);

// {rms_norm(x + residual), x + residual} in one pass over memory, forward and backward. The residual has x's
// shape and dtype.
AddNormResult add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight = {},
                           double eps = 1e-6);

}  // namespace ergon::ops
