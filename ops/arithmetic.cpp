#include "ops/arithmetic.h"

#include "core/autocast.h"
#include "core/autograd.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"

namespace ergon::ops {
namespace {

using autograd::Gradients;
using autograd::NeedsGrad;
using autograd::SavedTensor;
using detail::Argument;
using detail::BinaryOp;
using detail::RestoreInput;
using detail::TernaryOp;
using detail::UnaryOp;

Tensor combine(const char* name, BinaryOp op, const Argument& a, const Argument& b) {
  const DType dtype = detail::result_type(name, a, b);
  return detail::binary(name, op, a, b, dtype, dtype);
}

Tensor quotient(const Argument& a, const Argument& b) {
  const DType dtype = detail::floating_result(detail::result_type("div", a, b));
  return detail::binary("div", BinaryOp::div, a, b, dtype, dtype);
}

// What one factor's gradient needs of the other.
SavedTensor save_for(const Tensor& wants_grad, const Tensor& tensor) {
  return wants_grad.requires_grad() ? autograd::save(tensor) : SavedTensor();
}

// The record of an op whose gradient is `gradient(grad_output)` for its only tensor.
template <class F>
Tensor record_one(const char* name, const Tensor& y, const Tensor& x, F gradient) {
  return autograd::record(name, y, {x},
                          [gradient, restore = RestoreInput(x)](const Tensor& grad_output, const NeedsGrad&) {
                            return Gradients{restore(gradient(grad_output))};
                          });
}

Tensor same(const Tensor& grad) { return grad; }

Tensor div_grad(const Tensor& grad, const Tensor& y, const Tensor& denominator) {
  return detail::ternary("div", TernaryOp::div_grad, grad, y, denominator, grad.dtype());
}

Tensor extremum(const char* name, BinaryOp op, TernaryOp grad_op, const Tensor& a, const Argument& b) {
  const Tensor& tensor_b = b.tensor();
  return autograd::record(
      name, combine(name, op, a, b), {a, tensor_b},
      [=, saved_a = autograd::save(a), saved_b = autograd::save(tensor_b), scalar = b.scalar(),
       restore_a = RestoreInput(a),
       restore_b = RestoreInput(tensor_b)](const Tensor& grad_output, const NeedsGrad& needs) {
        const Tensor first = saved_a.get(), second = saved_b.get();
        const Argument other = second.defined() ? Argument(second) : Argument(scalar);
        Gradients grads(2);
        const auto gradient_of = [&](const Argument& mine, const Argument& others) {
          return detail::ternary(name, grad_op, grad_output, mine, others, grad_output.dtype());
        };
        if (needs[0]) grads[0] = restore_a(gradient_of(first, other));
        if (needs[1]) grads[1] = restore_b(gradient_of(second, first));
        return grads;
      });
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  return autograd::record("add", combine("add", BinaryOp::add, a, b), {a, b},
                          [restore_a = RestoreInput(a), restore_b = RestoreInput(b)](
                              const Tensor& grad_output, const NeedsGrad& needs) {
                            return Gradients{needs[0] ? restore_a(grad_output) : Tensor(),
                                             needs[1] ? restore_b(grad_output) : Tensor()};
                          });
}

Tensor add(const Tensor& a, Scalar b) {
  return record_one("add", combine("add", BinaryOp::add, a, b), a, same);
}

Tensor sub(const Tensor& a, const Tensor& b) {
  return autograd::record("sub", combine("sub", BinaryOp::sub, a, b), {a, b},
                          [restore_a = RestoreInput(a), restore_b = RestoreInput(b)](
                              const Tensor& grad_output, const NeedsGrad& needs) {
                            return Gradients{needs[0] ? restore_a(grad_output) : Tensor(),
                                             needs[1] ? neg(restore_b(grad_output)) : Tensor()};
                          });
}

Tensor sub(const Tensor& a, Scalar b) {
  return record_one("sub", combine("sub", BinaryOp::sub, a, b), a, same);
}

Tensor sub(Scalar a, const Tensor& b) {
  return record_one("sub", combine("sub", BinaryOp::sub, a, b), b, neg);
}

Tensor mul(const Tensor& a, const Tensor& b) {
  return autograd::record("mul", combine("mul", BinaryOp::mul, a, b), {a, b},
                          [saved_a = save_for(b, a), saved_b = save_for(a, b), restore_a = RestoreInput(a),
                           restore_b = RestoreInput(b)](const Tensor& grad_output, const NeedsGrad& needs) {
                            Gradients grads(2);
                            if (needs[0]) grads[0] = restore_a(mul(grad_output, saved_b.get()));
                            if (needs[1]) grads[1] = restore_b(mul(grad_output, saved_a.get()));
                            return grads;
                          });
}

Tensor mul(const Tensor& a, Scalar b) {
  return record_one("mul", combine("mul", BinaryOp::mul, a, b), a,
                    [b](const Tensor& grad) { return mul(grad, b); });
}

// y = a / b: da = dy / b, db = -dy * y / b.
Tensor div(const Tensor& a, const Tensor& b) {
  const Tensor y = quotient(a, b);
  return autograd::record("div", y, {a, b},
                          [saved_b = autograd::save(b), saved_y = save_for(b, y), restore_a = RestoreInput(a),
                           restore_b = RestoreInput(b)](const Tensor& grad_output, const NeedsGrad& needs) {
                            const Tensor denominator = saved_b.get();
                            Gradients grads(2);
                            if (needs[0]) grads[0] = restore_a(div(grad_output, denominator));
                            if (needs[1]) {
                              grads[1] = restore_b(div_grad(grad_output, saved_y.get(), denominator));
                            }
                            return grads;
                          });
}

Tensor div(const Tensor& a, Scalar b) {
  return record_one("div", quotient(a, b), a, [b](const Tensor& grad) { return div(grad, b); });
}

Tensor div(Scalar a, const Tensor& b) {
  const Tensor y = quotient(a, b);
  return record_one("div", y, b, [saved_b = autograd::save(b), saved_y = save_for(b, y)](const Tensor& grad) {
    return div_grad(grad, saved_y.get(), saved_b.get());
  });
}

Tensor pow(const Tensor& x, double exponent) {
  const DType dtype = detail::floating_result(autocast::dtype_for("pow", x));
  Tensor y;
  if (exponent == 2) {
    y = detail::unary("pow", UnaryOp::square, x, dtype);
  } else if (exponent == 1) {
    y = detail::binary("pow", BinaryOp::mul, x, Scalar(1), dtype, dtype);
  } else if (exponent == 0.5) {
    y = detail::unary("pow", UnaryOp::sqrt, x, dtype);
  } else if (exponent == -0.5) {
    y = detail::unary("pow", UnaryOp::rsqrt, x, dtype);
  } else if (exponent == -1) {
    y = detail::binary("pow", BinaryOp::div, Scalar(1.0), x, dtype, dtype);
  } else {
    y = detail::binary("pow", BinaryOp::pow, x, Scalar(exponent), dtype, dtype);
  }
  return record_one("pow", y, x, [saved = autograd::save(x), exponent](const Tensor& grad) {
    if (exponent == 2) {
      return detail::binary("pow", BinaryOp::square_grad, grad, saved.get(), grad.dtype(), grad.dtype());
    }
    if (exponent == 0) return zeros_like(grad);
    return detail::ternary("pow", TernaryOp::pow_grad, grad, saved.get(), Scalar(exponent), grad.dtype());
  });
}

Tensor neg(const Tensor& x) {
  ERGON_CHECK(x.dtype() != DType::boolean, "[neg] dtype bool: expected numbers");
  return record_one("neg", detail::unary("neg", UnaryOp::neg, x, x.dtype()), x, neg);
}

Tensor maximum(const Tensor& a, const Tensor& b) {
  return extremum("maximum", BinaryOp::maximum, TernaryOp::maximum_grad, a, b);
}
Tensor maximum(const Tensor& a, Scalar b) {
  return extremum("maximum", BinaryOp::maximum, TernaryOp::maximum_grad, a, b);
}
Tensor minimum(const Tensor& a, const Tensor& b) {
  return extremum("minimum", BinaryOp::minimum, TernaryOp::minimum_grad, a, b);
}
Tensor minimum(const Tensor& a, Scalar b) {
  return extremum("minimum", BinaryOp::minimum, TernaryOp::minimum_grad, a, b);
}

}  // namespace ergon::ops
