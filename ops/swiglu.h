#pragma once

#include "core/tensor.h"

namespace ergon::ops {

// silu(gate) * up (Shazeer 2020, arXiv 2002.05202), differentiable.
//   gate, up  one shape and floating dtype, at least one dimension
// Keeps gate and up for the backward. Throws Error naming shapes and dtypes if they differ.
Tensor swiglu(const Tensor& gate, const Tensor& up);

// The same for gate and up next to each other, as one linear layer makes them: x (..., 2 * hidden), gate the
// first half of the last dimension. Returns (..., hidden).
Tensor swiglu(const Tensor& x);

}  // namespace ergon::ops
