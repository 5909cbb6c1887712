#include "ops/softmax.h"

#include "core/autocast.h"
#include "core/autograd.h"
#include "kernels/softmax.h"
#include "ops/dispatch.h"

namespace ergon::ops {
namespace {

using kernels::SoftmaxForm;
using kernels::SoftmaxShape;

SoftmaxShape shape_around(const Shape& shape, int dim) {
  SoftmaxShape result;
  for (int i = 0; i < shape.size(); ++i) {
    (i < dim ? result.outer : i == dim ? result.length : result.inner) *= shape[i];
  }
  return result;
}

Tensor forward(SoftmaxForm form, const Tensor& x, const SoftmaxShape& shape) {
  NoGradGuard no_grad;
  const Tensor dense = x.contiguous();
  Tensor y = empty_like(x);
  ERGON_KERNEL(x.device(), softmax, form, x.dtype(), dense.data_ptr(), y.data_ptr(), shape);
  return y;
}

Tensor backward(SoftmaxForm form, const Tensor& y, const Tensor& grad_output, const SoftmaxShape& shape) {
  const Tensor dense = grad_output.contiguous();
  Tensor grad_input = empty_like(y);
  ERGON_KERNEL(y.device(), softmax_backward, form, y.dtype(), y.data_ptr(), dense.data_ptr(),
               grad_input.data_ptr(), shape);
  return grad_input;
}

Tensor apply(const char* name, SoftmaxForm form, const Tensor& x_in, std::int64_t dim) {
  ERGON_CHECK(x_in.defined(), "[{}] the tensor is undefined", name);
  OpScope scope(name, x_in);
  const auto [x] = autocast::cast(name, x_in);
  ERGON_CHECK(is_floating_point(x.dtype()), "[{}] dtype {}: expected floating point", name,
              name_of(x.dtype()));
  const SoftmaxShape shape = shape_around(x.shape(), wrap_dim(dim, x.dim(), name));
  const Tensor y = forward(form, x, shape);
  return autograd::record(name, y, {x},
                          [form, shape, saved = autograd::save(y)](const Tensor& grad_output, const auto&) {
                            return autograd::Gradients{backward(form, saved.get(), grad_output, shape)};
                          });
}

}  // namespace

Tensor softmax(const Tensor& x, std::int64_t dim) { return apply("softmax", SoftmaxForm::softmax, x, dim); }
Tensor log_softmax(const Tensor& x, std::int64_t dim) {
  return apply("log_softmax", SoftmaxForm::log_softmax, x, dim);
}

}  // namespace ergon::ops
