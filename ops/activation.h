#pragma once

// Elementwise functions. Results are computed in fp32 for f32, bf16 and f16 (rounded once) and in fp64 for
// f64, in x's shape and dtype; integers give f32, but abs and square keep them. Errors: see vec_math.h and
// activations.h.

#include "core/tensor.h"

namespace ergon::ops {

Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);  // log(0) = -inf, NaN below
Tensor sqrt(const Tensor& x);
Tensor rsqrt(const Tensor& x);  // 1 / sqrt(x)
Tensor sin(const Tensor& x);
Tensor cos(const Tensor& x);
Tensor abs(const Tensor& x);  // abs'(0) = 0
Tensor square(const Tensor& x);

Tensor tanh(const Tensor& x);
Tensor sigmoid(const Tensor& x);
Tensor relu(const Tensor& x);  // relu'(0) = 0
Tensor silu(const Tensor& x);  // x sigmoid(x)

// x Phi(x) with the normal distribution function Phi (Hendrycks and Gimpel, arXiv 1606.08415), exactly or by
// the approximation with tanh that GPT-2 uses.
enum class GeluForm { erf, tanh };
Tensor gelu(const Tensor& x, GeluForm form = GeluForm::erf);

}  // namespace ergon::ops
