#include "ops/activation.h"

#include "core/autocast.h"
#include "core/autograd.h"
#include "ops/elementwise.h"

namespace ergon::ops {
namespace {

using autograd::Gradients;
using autograd::NeedsGrad;
using detail::BinaryOp;
using detail::UnaryOp;

// What a gradient is computed from, besides the gradient of the result.
enum class Needs { argument, result };

// y = op(x), dx = grad_op(dy, x or y).
Tensor apply(const char* name, UnaryOp op, const Tensor& x, BinaryOp grad_op, Needs needs) {
  const bool keeps_integers = op == UnaryOp::abs || op == UnaryOp::square;
  const DType dtype = autocast::dtype_for(name, x);  // of the result: the kernel reads any
  const Tensor y = detail::unary(name, op, x, keeps_integers ? dtype : detail::floating_result(dtype));
  return autograd::record(name, y, {x},
                          [=, saved = autograd::save(needs == Needs::result ? y : x), x_dtype = x.dtype()](
                              const Tensor& grad_output, const NeedsGrad&) {
                            return Gradients{detail::binary(name, grad_op, grad_output, saved.get(),
                                                            grad_output.dtype(), x_dtype)};
                          });
}

}  // namespace

Tensor exp(const Tensor& x) { return apply("exp", UnaryOp::exp, x, BinaryOp::mul, Needs::result); }
Tensor log(const Tensor& x) { return apply("log", UnaryOp::log, x, BinaryOp::div, Needs::argument); }
Tensor sqrt(const Tensor& x) { return apply("sqrt", UnaryOp::sqrt, x, BinaryOp::sqrt_grad, Needs::result); }
Tensor rsqrt(const Tensor& x) {
  return apply("rsqrt", UnaryOp::rsqrt, x, BinaryOp::rsqrt_grad, Needs::result);
}
Tensor sin(const Tensor& x) { return apply("sin", UnaryOp::sin, x, BinaryOp::sin_grad, Needs::argument); }
Tensor cos(const Tensor& x) { return apply("cos", UnaryOp::cos, x, BinaryOp::cos_grad, Needs::argument); }
Tensor abs(const Tensor& x) { return apply("abs", UnaryOp::abs, x, BinaryOp::abs_grad, Needs::argument); }
Tensor square(const Tensor& x) {
  return apply("square", UnaryOp::square, x, BinaryOp::square_grad, Needs::argument);
}

Tensor tanh(const Tensor& x) { return apply("tanh", UnaryOp::tanh, x, BinaryOp::tanh_grad, Needs::result); }
Tensor sigmoid(const Tensor& x) {
  return apply("sigmoid", UnaryOp::sigmoid, x, BinaryOp::sigmoid_grad, Needs::result);
}
Tensor relu(const Tensor& x) { return apply("relu", UnaryOp::relu, x, BinaryOp::relu_grad, Needs::result); }
Tensor silu(const Tensor& x) { return apply("silu", UnaryOp::silu, x, BinaryOp::silu_grad, Needs::argument); }
Tensor gelu(const Tensor& x, GeluForm form) {
  return form == GeluForm::erf
             ? apply("gelu", UnaryOp::gelu_erf, x, BinaryOp::gelu_erf_grad, Needs::argument)
             : apply("gelu", UnaryOp::gelu_tanh, x, BinaryOp::gelu_tanh_grad, Needs::argument);
}

}  // namespace ergon::ops
