#include "ops/batch_norm.h"

#include "core/autograd.h"
#include "kernels/batch_norm.h"
#include "ops/dispatch.h"

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

void* data_or_null(const Tensor& t) { return t.defined() ? t.data_ptr() : nullptr; }

// What wide() has given, after a kernel has changed it.
void store(Tensor& t, const Tensor& wide) {
  NoGradGuard no_grad;
  if (t.data_ptr() != wide.data_ptr()) t.copy_(wide);
}

Tensor workspace_of(const Tensor& x, DType dtype) {
  const std::int64_t elements =
      ERGON_KERNEL(x.device(), batch_norm_workspace, x.shape()[0], x.shape()[1], x.shape()[2] * x.shape()[3]);
  return empty({elements}, {dtype, x.device()});
}

}  // namespace

Tensor batch_norm2d(const Tensor& x_in, const Tensor& weight, const Tensor& bias, Tensor running_mean,
                    Tensor running_var, bool training, double momentum, double eps) {
  const OpScope scope("batch_norm2d", x_in, weight, bias, running_mean, running_var);
  check(x_in, weight, bias, running_mean, running_var, training);
  const Tensor x = [&] {
    NoGradGuard no_grad;
    return x_in.contiguous();
  }();
  const std::int64_t batch = x.shape()[0], channels = x.shape()[1], positions = x.shape()[2] * x.shape()[3];
  const DType dtype = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const TensorOptions options{dtype, x.device()};
  Tensor moved_mean = wide(running_mean, dtype), moved_var = wide(running_var, dtype);
  const Tensor mean = training ? empty({channels}, options) : moved_mean.clone();
  const Tensor var = training ? empty({channels}, options) : moved_var.clone();
  const Tensor rstd = empty({channels}, options), scale = wide(weight, dtype), shift = wide(bias, dtype);
  const Tensor y = empty(x.shape(), x.options()), workspace = workspace_of(x, dtype);
  ERGON_KERNEL(x.device(), batch_norm_forward,
               {.dtype = x.dtype(),
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
                .running_mean = data_or_null(moved_mean),
                .running_var = data_or_null(moved_var),
                .momentum = momentum,
                .y = y.data_ptr(),
                .workspace = workspace.data_ptr()});
  if (training && running_mean.defined()) {
    store(running_mean, moved_mean);
    store(running_var, moved_var);
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
        const Tensor scratch = workspace_of(x2, mean.dtype());
        ERGON_KERNEL(x2.device(), batch_norm_backward,
                     {.dtype = dy.dtype(),
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
                      .dbias = dbias.data_ptr(),
                      .workspace = scratch.data_ptr()});
        if (needs[1]) grads[1] = dweight.to(weight_dtype);
        if (needs[2]) grads[2] = dbias.to(bias_dtype);
        return grads;
      });
}

}  // namespace ergon::ops
