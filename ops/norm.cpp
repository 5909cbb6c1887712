#include "ops/norm.h"

#include <array>

#include "core/autocast.h"
#include "core/autograd.h"
#include "kernels/norm.h"
#include "ops/dispatch.h"
#include "ops/row_view.h"

namespace ergon::ops {
namespace {

void check_vector(const char* op, const char* name, const Tensor& vector, const Tensor& x) {
  if (!vector.defined()) return;
  ERGON_CHECK(vector.shape() == Shape{x.size(-1)}, "[{}] x {} and {} {}: expected {} of shape {}", op,
              x.shape(), name, vector.shape(), name, Shape{x.size(-1)});
  ERGON_CHECK(vector.dtype() == x.dtype() || (is_half(x.dtype()) && vector.dtype() == DType::f32),
              "[{}] x is {}, {} is {}: expected x's dtype{}", op, name_of(x.dtype()), name,
              name_of(vector.dtype()), is_half(x.dtype()) ? " or f32" : "");
}

void check(const NormOp& op, const Tensor& x, const Tensor& residual, const Tensor& weight,
           const Tensor& bias, double eps) {
  check_rows(op.name, "x", x);
  check_vector(op.name, "weight", weight, x);
  check_vector(op.name, "bias", bias, x);
  ERGON_CHECK(eps >= 0, "[{}] eps {}: expected a number that is not negative", op.name, eps);
  if (!residual.defined()) return;
  ERGON_CHECK(residual.shape() == x.shape() && residual.dtype() == x.dtype(),
              "[{}] x {} {} and residual {} {}: shapes and dtypes must be equal", op.name, x.shape(),
              name_of(x.dtype()), residual.shape(), name_of(residual.dtype()));
}

void run_forward(const NormOp& op, Device device, const kernels::NormForwardParams& params) {
  if (op.centered) {
    ERGON_KERNEL(device, layer_norm_forward, params);
  } else {
    ERGON_KERNEL(device, rms_norm_forward, params);
  }
}

void run_backward(const NormOp& op, Device device, const kernels::NormBackwardParams& params) {
  if (op.centered) {
    ERGON_KERNEL(device, layer_norm_backward, params);
  } else {
    ERGON_KERNEL(device, rms_norm_backward, params);
  }
}

std::int64_t workspace_size(const Tensor& x, std::int64_t rows, std::int64_t cols) {
  const std::int64_t chunks =
      x.device().is_cpu() ? kernels::cpu::kNormBackwardChunks : kernels::cuda::kNormBackwardChunks;
  return kernels::norm_backward_workspace(rows, cols, chunks);
}

// The kernel's gradients; dsum undefined: none.
struct Gradients {
  Tensor dx, dweight, dbias;
};

struct Saved {
  const NormOp* op;
  Shape shape;
  autograd::SavedTensor s, weight, mean, rstd;
  DType bias_dtype;
};

Gradients backward(const Saved& saved, const Tensor& dout, const Tensor& dsum, bool want_dx,
                   bool want_dweight, bool want_dbias) {
  const Tensor s = saved.s.get(), weight = saved.weight.get(), mean = saved.mean.get(),
               rstd = saved.rstd.get();
  const RowView rows = rows_of(s), douts = rows_of(dout);
  const RowView dsums = dsum.defined() ? rows_of(dsum) : RowView{};
  const TensorOptions options = s.options();
  Gradients grads;
  if (want_dx) grads.dx = empty(saved.shape, options);
  if (want_dweight) grads.dweight = empty({rows.cols}, weight.options());
  if (want_dbias) grads.dbias = empty({rows.cols}, {saved.bias_dtype, options.device});
  Tensor workspace;
  if (want_dweight || want_dbias) {
    workspace = empty({workspace_size(s, rows.rows, rows.cols)}, rstd.options());
  }
  run_backward(*saved.op, s.device(),
               {.rows = rows.rows,
                .cols = rows.cols,
                .dout = douts.matrix(),
                .dsum = dsum.defined() ? dsums.matrix() : kernels::RowMatrix{},
                .s = rows.matrix(),
                .weight = row_operand(weight),
                .mean = mean.defined() ? mean.data_ptr() : nullptr,
                .rstd = rstd.data_ptr(),
                .dx = row_operand(grads.dx),
                .dweight = row_operand(grads.dweight),
                .dbias = row_operand(grads.dbias),
                .workspace = workspace.defined() ? workspace.data_ptr() : nullptr});
  return grads;
}

}  // namespace

AddNormResult normalize(const NormOp& op, const Tensor& x_in, const Tensor& residual_in, const Tensor& weight,
                        const Tensor& bias, double eps) {
  OpScope scope(op.name, x_in, residual_in, weight, bias);
  const auto [x, residual] = autocast::cast(op.name, x_in, residual_in);
  check(op, x, residual, weight, bias, eps);
  const bool add = residual.defined();
  const std::array<Tensor, 4> inputs{x, weight, bias, residual};
  const bool recording = autograd::should_record(inputs);
  const RowView xs = rows_of(x);
  const RowView residuals = add ? rows_of(residual) : RowView{};
  const RowView weights = weight.defined() ? rows_of(weight) : RowView{};
  const RowView biases = bias.defined() ? rows_of(bias) : RowView{};

  std::array<Tensor, 2> outputs{empty(x.shape(), x.options()),
                                add ? empty(x.shape(), x.options()) : Tensor()};
  const Tensor& y = outputs[0];
  const Tensor& sum = outputs[1];
  Tensor mean, rstd;  // (rows)
  if (recording) {
    const TensorOptions options{x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()};
    rstd = empty({xs.rows}, options);
    if (op.centered) mean = empty({xs.rows}, options);
  }
  run_forward(op, x.device(),
              {.rows = xs.rows,
               .cols = xs.cols,
               .eps = eps,
               .x = xs.matrix(),
               .residual = add ? residuals.matrix() : kernels::RowMatrix{},
               .weight = weight.defined() ? weights.matrix() : kernels::RowMatrix{},
               .bias = bias.defined() ? biases.matrix() : kernels::RowMatrix{},
               .sum = row_operand(sum),
               .y = row_operand(y),
               .mean = mean.defined() ? mean.data_ptr() : nullptr,
               .rstd = rstd.defined() ? rstd.data_ptr() : nullptr});
  if (!recording) return {y, sum};

  using autograd::save;
  Saved saved{.op = &op,
              .shape = x.shape(),
              .s = save(add ? sum : xs.tensor),
              .weight = save(weight.defined() ? weights.tensor : weight),
              .mean = save(mean),
              .rstd = save(rstd),
              .bias_dtype = bias.defined() ? bias.dtype() : x.dtype()};
  autograd::record(op.name, std::span(outputs).first(add ? 2 : 1), std::span(inputs).first(add ? 4 : 3),
                   [saved = std::move(saved), add](std::span<const Tensor> grad_outputs,
                                                   const autograd::NeedsGrad& needs) {
                     const bool want_dx = needs[0] || (add && needs[3]);
                     Gradients grads = backward(saved, grad_outputs[0], add ? grad_outputs[1] : Tensor(),
                                                want_dx, needs[1], needs[2]);
                     autograd::Gradients result{grads.dx, std::move(grads.dweight), std::move(grads.dbias)};
                     if (add) result.push_back(grads.dx);
                     return result;
                   });
  return {y, sum};
}

}  // namespace ergon::ops
