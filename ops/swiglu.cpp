#include "ops/swiglu.h"

#include "core/autocast.h"
#include "core/autograd.h"
#include "kernels/swiglu.h"
#include "ops/dispatch.h"
#include "ops/row_view.h"

namespace ergon::ops {
namespace {

kernels::RowMatrix columns_from(kernels::RowMatrix matrix, std::int64_t col) {
  matrix.data = static_cast<char*>(matrix.data) + col * size_of(matrix.dtype);
  return matrix;
}

}  // namespace

Tensor swiglu(const Tensor& gate_in, const Tensor& up_in) {
  OpScope scope("swiglu", gate_in, up_in);
  const auto [gate, up] = autocast::cast("swiglu", gate_in, up_in);
  check_rows("swiglu", "gate", gate);
  ERGON_CHECK(gate.shape() == up.shape() && gate.dtype() == up.dtype(),
              "[swiglu] gate {} {} and up {} {}: shapes and dtypes must be equal", gate.shape(),
              name_of(gate.dtype()), up.shape(), name_of(up.dtype()));
  const RowView gates = rows_of(gate), ups = rows_of(up);
  const Tensor y = empty(gate.shape(), gate.options());
  ERGON_KERNEL(y.device(), swiglu_forward,
               {.rows = gates.rows,
                .cols = gates.cols,
                .gate = gates.matrix(),
                .up = ups.matrix(),
                .y = {y.data_ptr(), y.dtype(), gates.cols}});
  using autograd::save;
  return autograd::record(
      "swiglu", y, {gate, up},
      [gate = save(gates.tensor), up = save(ups.tensor)](const Tensor& grad_output,
                                                         const autograd::NeedsGrad&) {
        const RowView g = rows_of(gate.get()), u = rows_of(up.get()), dout = rows_of(grad_output);
        const Tensor dgate = empty(grad_output.shape(), grad_output.options()), dup = empty_like(dgate);
        ERGON_KERNEL(dgate.device(), swiglu_backward,
                     {.rows = g.rows,
                      .cols = g.cols,
                      .gate = g.matrix(),
                      .up = u.matrix(),
                      .dout = dout.matrix(),
                      .dgate = {dgate.data_ptr(), dgate.dtype(), g.cols},
                      .dup = {dup.data_ptr(), dup.dtype(), g.cols}});
        return autograd::Gradients{dgate, dup};
      });
}

Tensor swiglu(const Tensor& x) {
  OpScope scope("swiglu", x);
  check_rows("swiglu", "x", x);
  ERGON_CHECK(x.size(-1) % 2 == 0, "[swiglu] x {}: its last dimension must be even, gate and up side by side",
              x.shape());
  const RowView rows = rows_of(x);
  const std::int64_t hidden = rows.cols / 2;
  Shape shape = x.shape();
  shape.back() = hidden;
  const Tensor y = empty(shape, x.options());
  ERGON_KERNEL(y.device(), swiglu_forward,
               {.rows = rows.rows,
                .cols = hidden,
                .gate = rows.matrix(),
                .up = columns_from(rows.matrix(), hidden),
                .y = {y.data_ptr(), y.dtype(), hidden}});
  return autograd::record(
      "swiglu", y, {x},
      [x = autograd::save(rows.tensor), hidden](const Tensor& grad_output, const autograd::NeedsGrad&) {
        const RowView xs = rows_of(x.get()), dout = rows_of(grad_output);
        const Tensor dx = empty(xs.tensor.shape(), grad_output.options());
        const kernels::RowMatrix dgate{dx.data_ptr(), dx.dtype(), 2 * hidden};
        ERGON_KERNEL(dx.device(), swiglu_backward,
                     {.rows = xs.rows,
                      .cols = hidden,
                      .gate = xs.matrix(),
                      .up = columns_from(xs.matrix(), hidden),
                      .dout = dout.matrix(),
                      .dgate = dgate,
                      .dup = columns_from(dgate, hidden)});
        return autograd::Gradients{dx};
      });
}

}  // namespace ergon::ops
