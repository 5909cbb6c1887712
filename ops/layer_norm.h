#pragma once

#include "core/tensor.h"
#include "ops/norm.h"

namespace ergon::ops {

// (x - mean) / sqrt(variance + eps) * weight + bias, mean and (biased) variance over the last dimension (Ba
// et al. 2016, arXiv 1607.06450). Differentiable.
//   x             (..., features)  f32, bf16, f16 or f64
//   weight, bias  (features)       x's dtype, or f32 with half precision; undefined: 1 and 0
// Statistics in fp32 (f64 for f64). Throws Error naming shapes and dtypes if they do not fit together.
Tensor layer_norm(const Tensor& x, const Tensor& weight = {}, const Tensor& bias = {}, double eps = 1e-5);

// {layer_norm(x + residual), x + residual} in one pass over memory, forward and backward. The residual has
// x's shape and dtype.
AddNormResult add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight = {},
                             const Tensor& bias = {}, double eps = 1e-5);

}  // namespace ergon::ops
