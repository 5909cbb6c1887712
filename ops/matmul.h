#pragma once

#include "core/tensor.h"

namespace ergon::ops {

// The matrix product over the last two dimensions, differentiable.
//   a (..., M, K), b (..., K, N) → (..., M, N); leading dimensions broadcast. One-dimensional operands are a
//   row (a) or a column (b), and their dimension is dropped from the result, as in PyTorch.
// Transposed and otherwise strided operands are read in place. Dtypes are promoted, or converted to
// Autocast's; half precision accumulates in fp32, and gradients are rounded once, to their operand's dtype.
// Throws Error naming both shapes if a.shape[-1] differs from b.shape[-2].
Tensor matmul(const Tensor& a, const Tensor& b);

// Whether products of f32 on CUDA may round their operands to TF32, which has 10 bits of mantissa: about
// three times as fast as fp32's accuracy, which is the default. For the process; for matmul, linear,
// linear_cross_entropy.
void set_allow_tf32(bool allow);
bool allow_tf32();

}  // namespace ergon::ops
