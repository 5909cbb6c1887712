#include "ops/batch_norm.h"

#include "core/autograd.h"
#include "kernels/batch_norm.h"

namespace ergon::ops {
namespace {

void check_vector(const char* name, const Tensor& t, const Shape& x) {
  if (!t.defined()) return;
  ERGON_CHECK(t.shape() == Shape{x[1]} && is_floating_point(t.dtype()),
              "[batch_norm2d] {} {} {}: expected ({},) of floating point for x {}", name, t.shape(),
              name_of(t.dtype()), x[1], x);
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
           const Tensor& running_var, bool training) {
  ERGON_CHECK(x.dim() == 4 && is_floating_point(x.dtype()),
              "[batch_norm2d] x {} {}: expected (N, C, H, W) of floating point", x.shape(),
              name_of(x.dtype()));
  check_vector("weight", weight, x.shape());
  check_vector("bias", bias, x.shape());
  check_vector("running_mean", running_mean, x.shape());
  check_vector("running_var", running_var, x.shape());
  ERGON_CHECK(running_mean.defined() == running_var.defined() && (training || running_mean.defined()),
              "[batch_norm2d] running_mean and running_var go together, and are needed unless training");
  ERGON_CHECK(!training || x.shape()[0] * x.shape()[2] * x.shape()[3] > 1,
              "[batch_norm2d] x {}: training needs more than one value a channel", x.shape());
}

// A dense copy or view in the type that statistics are computed in; undefined stays so.
Tensor wide(const Tensor& t, DType dtype) {
  NoGradGuard no_grad;
  return t.defined() ? t.detach().to(dtype).contiguous() : t;
}

const void* data_or_null(const Tensor& t) { return t.defined() ? t.data_ptr() : nullptr; }

// running += momentum * (scale * batch - running)
void move_towards(Tensor& running, const Tensor& batch, double scale, double momentum) {
  NoGradGuard no_grad;
  std::vector<double> values = running.to_vector<double>();
  const std::vector<double> targets = batch.to_vector<double>();
  for (std::size_t i = 0; i < values.size(); ++i) values[i] += momentum * (scale * targets[i] - values[i]);
  running.copy_(from_vector(values, running.shape(), {DType::f64}));
}

}  // namespace

Tensor batch_norm2d(const Tensor& x_in, const Tensor& weight, const Tensor& bias, Tensor running_mean,
                    Tensor running_var, bool training, double momentum, double eps) {
  check(x_in, weight, bias, running_mean, running_var, training);
  const Tensor x = [&] {
    NoGradGuard no_grad;
    return x_in.contiguous();
  }();
  const std::int64_t batch = x.shape()[0], channels = x.shape()[1], positions = x.shape()[2] * x.shape()[3];
  const DType dtype = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const Tensor mean = training ? empty({channels}, {dtype}) : wide(running_mean, dtype).clone();
  const Tensor var = training ? empty({channels}, {dtype}) : wide(running_var, dtype).clone();
  const Tensor rstd = empty({channels}, {dtype}), scale = wide(weight, dtype), shift = wide(bias, dtype);
  const Tensor y = empty(x.shape(), x.options());
  kernels::cpu::batch_norm_forward({.dtype = x.dtype(),
                                    .batch = batch,
                                    .channels = channels,
                                    .positions = positions,
                                    .batch_statistics = training,
                                    .eps = eps,
                                    .x = x.data_ptr(),
                                    .weight = data_or_null(scale),
                                    .bias = data_or_null(shift),
                                    .mean = mean.data_ptr(),
                                    .var = var.data_ptr(),
                                    .rstd = rstd.data_ptr(),
                                    .y = y.data_ptr()});
  if (training && running_mean.defined()) {
    const double count = static_cast<double>(batch * positions);
    move_towards(running_mean, mean, 1, momentum);
    move_towards(running_var, var, count / (count - 1), momentum);
  }

  using autograd::save;
  const DType weight_dtype = weight.defined() ? weight.dtype() : dtype;
  const DType bias_dtype = bias.defined() ? bias.dtype() : dtype;
  return autograd::record(
      "batch_norm2d", y, {x_in, weight, bias},
      [x = save(x), weight = weight.defined() ? save(weight) : autograd::SavedTensor(), mean, rstd, training,
       weight_dtype, bias_dtype](const Tensor& grad_output, const autograd::NeedsGrad& needs) {
        const Tensor dy = grad_output.contiguous(), x2 = x.get(), w = wide(weight.get(), mean.dtype());
        autograd::Gradients grads(3);
        const Tensor dweight = empty_like(mean), dbias = empty_like(mean);
        if (needs[0]) grads[0] = empty(x2.shape(), x2.options());
        kernels::cpu::batch_norm_backward({.dtype = dy.dtype(),
                                           .batch = x2.shape()[0],
                                           .channels = x2.shape()[1],
                                           .positions = x2.shape()[2] * x2.shape()[3],
                                           .batch_statistics = training,
                                           .dout = dy.data_ptr(),
                                           .x = x2.data_ptr(),
                                           .weight = data_or_null(w),
                                           .mean = mean.data_ptr(),
                                           .rstd = rstd.data_ptr(),
                                           .dx = needs[0] ? grads[0].data_ptr() : nullptr,
                                           .dweight = dweight.data_ptr(),
                                           .dbias = dbias.data_ptr()});
        if (needs[1]) grads[1] = dweight.to(weight_dtype);
        if (needs[2]) grads[2] = dbias.to(bias_dtype);
        return grads;
      });
}

}  // namespace ergon::ops
