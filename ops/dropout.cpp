#include "ops/dropout.h"

#include "core/autograd.h"
#include "kernels/dropout.h"
#include "ops/dispatch.h"

namespace ergon::ops {
namespace {

// Forward on x, backward on the gradient.
Tensor apply(const Tensor& x, double p, PhiloxState stream) {
  NoGradGuard no_grad;
  const Tensor dense = x.contiguous();
  const Tensor y = empty_like(dense);
  ERGON_KERNEL(x.device(), dropout,
               {.numel = dense.numel(),
                .dtype = dense.dtype(),
                .x = dense.data_ptr(),
                .y = y.data_ptr(),
                .p = p,
                .stream = stream});
  return y;
}

}  // namespace

Tensor dropout(const Tensor& x, double p, bool training, Generator& generator) {
  OpScope scope("dropout", x);
  ERGON_CHECK(p >= 0 && p <= 1, "[dropout] p {}: expected a probability in [0, 1]", p);
  ERGON_CHECK(is_floating_point(x.dtype()), "[dropout] x is {}: expected one of f32, bf16, f16, f64",
              name_of(x.dtype()));
  if (!training || p == 0) return x;
  const PhiloxState stream = generator.reserve(x.numel());
  return autograd::record("dropout", apply(x, p, stream), {x},
                          [p, stream](const Tensor& grad_output, const autograd::NeedsGrad&) {
                            return autograd::Gradients{apply(grad_output, p, stream)};
                          });
}

}  // namespace ergon::ops
