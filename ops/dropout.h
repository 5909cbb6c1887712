#pragma once

#include "core/random.h"
#include "core/tensor.h"

namespace ergon::ops {

// Zeroes each element with probability p and scales the others by 1 / (1 - p) (Srivastava et al. 2014).
// Differentiable; the mask is not stored but drawn again in the backward.
//   x  any shape; f32, bf16, f16 or f64
// Returns x itself when not training or when p is 0 (no random numbers are taken); zeros for p = 1.
// Throws Error unless p is in [0, 1].
Tensor dropout(const Tensor& x, double p, bool training = true, Generator& generator = default_generator());

}  // namespace ergon::ops
