#include "ops/linear.h"

#include "core/autocast.h"
#include "core/autograd.h"
#include "kernels/linear.h"
#include "ops/dispatch.h"
#include "ops/gemm.h"

namespace ergon::ops {
namespace {

using kernels::GemmOperand;
using kernels::GemmParams;

GemmOperand<const void*> operand(const Tensor& t) {
  return {t.data_ptr(), t.dtype(), t.strides()[0], t.strides()[1]};
}
GemmOperand<void*> output(const Tensor& t) {
  return {t.data_ptr(), t.dtype(), t.strides()[0], t.strides()[1]};
}
// The (out, in) matrix, whatever the layout.
Tensor out_by_in(const Tensor& weight, WeightLayout layout) {
  return layout == WeightLayout::out_in ? weight : weight.transpose(0, 1);
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, WeightLayout layout) {
  ERGON_CHECK(x.dim() >= 1 && weight.dim() == 2,
              "[linear] x {} and weight {}: expected (..., in) and a matrix", x.shape(), weight.shape());
  const int in = layout == WeightLayout::out_in ? 1 : 0;
  ERGON_CHECK(x.size(-1) == weight.shape()[in],
              "[linear] x {} and weight {}: x.shape[-1] = {} must equal weight.shape[{}] = {}", x.shape(),
              weight.shape(), x.size(-1), in, weight.shape()[in]);
  ERGON_CHECK(x.dtype() == weight.dtype() && is_floating_point(x.dtype()),
              "[linear] x is {}, weight {}: expected one floating dtype", name_of(x.dtype()),
              name_of(weight.dtype()));
  if (!bias.defined()) return;
  ERGON_CHECK(bias.shape() == Shape{weight.shape()[1 - in]}
                  && (bias.dtype() == x.dtype() || (is_half(x.dtype()) && bias.dtype() == DType::f32)),
              "[linear] bias {} {}: expected ({},) {}{}", bias.shape(), name_of(bias.dtype()),
              weight.shape()[1 - in], name_of(x.dtype()), is_half(x.dtype()) ? " or f32" : "");
}

}  // namespace

Tensor linear(const Tensor& x_in, const Tensor& weight_in, const Tensor& bias, const LinearOptions& options) {
  OpScope scope("linear", x_in, weight_in, bias);
  const bool recording = autograd::should_record(std::vector<Tensor>{x_in, weight_in, bias});
  // What follows computes the gradients in the dtypes of x_in and weight_in: no cast back is recorded.
  Tensor x, weight, rows, matrix;  // (..., in), as given; (rows, in), (out, in)
  {
    NoGradGuard no_grad;
    std::tie(x, weight) = std::tuple_cat(autocast::cast("linear", x_in, weight_in));
    check(x, weight, bias, options.layout);
    rows = x.reshape({-1, x.size(-1)});
    matrix = out_by_in(weight, options.layout);
  }
  const std::int64_t M = rows.shape()[0], K = rows.shape()[1], N = matrix.shape()[0];
  Shape shape = x.shape();
  shape.back() = N;
  const Tensor y = empty(shape, x.options());
  const Tensor pre = recording && options.activation != Activation::none ? empty_like(y) : Tensor();
  const Tensor bias_row = bias.defined() ? bias.contiguous() : bias;
  GemmOperand<const void*> transposed = operand(matrix);
  std::swap(transposed.row_stride, transposed.col_stride);
  detail::gemm(x.device(), {.M = M,
                            .N = N,
                            .K = K,
                            .a = operand(rows),
                            .b = transposed,
                            .c = {y.data_ptr(), y.dtype(), N, 1},
                            .bias = bias.defined() ? bias_row.data_ptr() : nullptr,
                            .bias_dtype = bias.defined() ? bias.dtype() : x.dtype(),
                            .activation = options.activation,
                            .pre_activation = pre.defined() ? pre.data_ptr() : nullptr});

  using autograd::save;
  return autograd::record(
      "linear", y, {x_in, weight_in, bias},
      [rows = save(rows), weight = save(weight), pre = save(pre), shape = x.shape(), x_dtype = x_in.dtype(),
       weight_dtype = weight_in.dtype(), bias_dtype = bias.defined() ? bias.dtype() : x.dtype(),
       options](const Tensor& grad_output, const autograd::NeedsGrad& needs) {
        const Tensor x2 = rows.get(), w = weight.get(), pre2 = pre.get();
        const Tensor matrix2 = out_by_in(w, options.layout);
        const std::int64_t rows2 = x2.shape()[0], in = x2.shape()[1], out = matrix2.shape()[0];
        const Tensor dy = grad_output.contiguous().view({rows2, out});
        autograd::Gradients grads(3);

        // dpre = dy * act'(pre), dbias = sum of dpre over rows
        const Tensor dpre = pre2.defined() ? empty_like(dy) : dy;
        if (needs[2]) grads[2] = empty({out}, {bias_dtype, dy.device()});
        if (pre2.defined() || needs[2]) {
          Tensor workspace;
          if (needs[2] && !dy.device().is_cpu()) {
            workspace = empty({kernels::bias_gradient_workspace(rows2, out)},
                              {dy.dtype() == DType::f64 ? DType::f64 : DType::f32, dy.device()});
          }
          ERGON_KERNEL(dy.device(), bias_activation_backward,
                       {.dtype = dy.dtype(),
                        .activation = options.activation,
                        .rows = rows2,
                        .cols = out,
                        .dout = dy.data_ptr(),
                        .pre = pre2.defined() ? pre2.data_ptr() : nullptr,
                        .dpre = pre2.defined() ? dpre.data_ptr() : nullptr,
                        .dbias = needs[2] ? grads[2].data_ptr() : nullptr,
                        .dbias_dtype = bias_dtype,
                        .workspace = workspace.defined() ? workspace.data_ptr() : nullptr});
        }
        if (needs[0]) {  // dx = dpre W
          grads[0] = empty(shape, {x_dtype, dy.device()});
          detail::gemm(dy.device(), {.M = rows2,
                                     .N = in,
                                     .K = out,
                                     .a = operand(dpre),
                                     .b = operand(matrix2),
                                     .c = {grads[0].data_ptr(), x_dtype, in, 1}});
        }
        if (needs[1]) {  // dW = dpre^T x, or its transpose
          grads[1] = empty(w.shape(), {weight_dtype, dy.device()});
          const bool out_in = options.layout == WeightLayout::out_in;
          GemmOperand<const void*> left = operand(out_in ? dpre : x2);
          std::swap(left.row_stride, left.col_stride);
          detail::gemm(dy.device(), {.M = out_in ? out : in,
                                     .N = out_in ? in : out,
                                     .K = rows2,
                                     .a = left,
                                     .b = operand(out_in ? x2 : dpre),
                                     .c = output(grads[1])});
        }
        return grads;
      });
}

}  // namespace ergon::ops
