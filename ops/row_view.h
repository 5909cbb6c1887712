#pragma once

// A tensor seen as a matrix of rows along its last dimension: what the row-wise kernels take. Internal to
// ops.

#include <string_view>

#include "core/tensor.h"
#include "kernels/row_matrix.h"

namespace ergon::ops {

struct RowView {
  Tensor tensor;  // the argument, or a contiguous copy of it
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;  // from row to row, in elements

  kernels::RowMatrix matrix() const { return {tensor.data_ptr(), tensor.dtype(), stride}; }
};

// x (..., cols), at least one dimension: leading dimensions are merged. Copies, without history, when
// elements of a row are not next to each other or the rows are not evenly spaced.
RowView rows_of(const Tensor& x);

// Undefined: the absent operand.
inline kernels::RowMatrix row_operand(const Tensor& x) {
  return x.defined() ? rows_of(x).matrix() : kernels::RowMatrix{};
}

// Throws Error naming `op` and `name` unless x is floating point with at least one dimension and a last one
// that is not empty.
void check_rows(const char* op, std::string_view name, const Tensor& x);

}  // namespace ergon::ops
