#include "ops/row_view.h"

#include "core/autograd.h"

namespace ergon::ops {

RowView rows_of(const Tensor& x) {
  const Shape& shape = x.shape();
  const Strides& strides = x.strides();
  const int last = x.dim() - 1;
  RowView view{x, 1, shape[last], shape[last]};
  for (int dim = 0; dim < last; ++dim) view.rows *= shape[dim];
  if (x.is_contiguous()) return view;

  bool regular = shape[last] == 1 || strides[last] == 1;
  std::int64_t next = -1;  // the stride that lets dimension `dim` continue the rows after it
  for (int dim = last - 1; dim >= 0; --dim) {
    if (shape[dim] == 1) continue;
    if (next < 0) {
      view.stride = strides[dim];
    } else {
      regular &= strides[dim] == next;
    }
    next = strides[dim] * shape[dim];
  }
  if (regular) return view;
  NoGradGuard no_grad;
  view.tensor = x.contiguous();
  view.stride = view.cols;
  return view;
}

void check_rows(const char* op, std::string_view name, const Tensor& x) {
  ERGON_CHECK(x.dim() >= 1 && x.size(-1) > 0,
              "[{}] {} {}: expected at least one dimension, the last not empty", op, name, x.shape());
  ERGON_CHECK(is_floating_point(x.dtype()), "[{}] {} is {}: expected one of f32, bf16, f16, f64", op, name,
              name_of(x.dtype()));
}

}  // namespace ergon::ops
