#pragma once

#include "core/tensor.h"

namespace ergon::ops {

// Rows of `weight` by index, differentiable in weight.
//   weight   (vocab, features)  any floating dtype
//   indices  (...)              i32 or i64, each in [0, vocab)
// Returns (..., features). The gradient is dense and deterministic. Throws Error naming the position, the
// index and the vocabulary size if an index is out of range.
Tensor embedding(const Tensor& weight, const Tensor& indices);

}  // namespace ergon::ops
