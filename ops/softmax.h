#pragma once

#include "core/tensor.h"

namespace ergon::ops {

// exp(x) / sum(exp(x)) along `dim`, and its logarithm; x floating point, the result has its shape and dtype.
// Computed with the maximum taken off first, statistics in fp32 (fp64 for f64). Fastest along the last
// dimension; x is copied first unless it is contiguous. A slice that holds NaN or +inf, or nothing but -inf,
// gives NaN. Throws Error for another dtype or a dimension out of range.
Tensor softmax(const Tensor& x, std::int64_t dim);
Tensor log_softmax(const Tensor& x, std::int64_t dim);

}  // namespace ergon::ops
