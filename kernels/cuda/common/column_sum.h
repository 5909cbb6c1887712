#pragma once

// The second step of sums over rows: blocks have left a partial sum for each column.

#include "kernels/row_matrix.h"

namespace ergon::kernels::cuda {

// out[c] = sum over k of partials[k * stride + c], k < count, c < cols; a fixed tree.
//   partials  f32, f64 where out is f64
//   out       (cols) f32 | bf16 | f16 | f64
// Bytes: count * cols of partials and cols of out.
void sum_partials(const void* partials, std::int64_t count, std::int64_t stride, std::int64_t cols,
                  const RowMatrix& out);

}  // namespace ergon::kernels::cuda
