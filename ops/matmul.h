#pragma once

#include "core/tensor.h"

namespace ergon::ops {

// The matrix product over the last two dimensions, differentiable.
//   a (..., M, K), b (..., K, N) → (..., M, N); leading dimensions broadcast. One-dimensional operands are a
//   row (a) or a column (b), and their dimension is dropped from the result, as in PyTorch.
// Transposed and otherwise strided operands are read in place. Dtypes are promoted; half precision
// accumulates in fp32. Throws Error naming both shapes if a.shape[-1] differs from b.shape[-2].
Tensor matmul(const Tensor& a, const Tensor& b);

}  // namespace ergon::ops
