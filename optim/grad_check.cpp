#include "optim/grad_check.h"

#include "kernels/grad_scale.h"
#include "ops/dispatch.h"
#include "optim/tensor_list.h"

namespace ergon::optim {

GradCheckResult check_gradients(const char* op, const std::vector<Tensor>& params,
                                const GradCheckOptions& options) {
  const OpScope scope(op);
  std::vector<Tensor> dense;
  for (Tensor param : params) {
    Tensor grad = param.grad();
    if (!grad.defined()) continue;
    if (!grad.is_contiguous()) {
      grad = grad.contiguous();
      if (options.unscale) param.set_grad(grad);
    }
    if (options.unscale) grad.bump_version();
    dense.push_back(grad);
    ERGON_CHECK(grad.device() == dense[0].device(), "[{}] gradients on {} and on {}: expected one device", op,
                to_string(dense[0].device()), to_string(grad.device()));
  }
  if (dense.empty()) return {};
  const Device device = dense[0].device();
  TensorList list(device);
  for (const Tensor& grad : dense) {
    list.add({.dtype = grad.dtype(), .numel = grad.numel(), .grad = grad.data_ptr()});
  }
  const kernels::OptimizerTensors tensors = list.get();
  const Tensor partials = empty({tensors.chunks}, {DType::f64, device});
  GradCheckResult result{.norm = empty({1}, {DType::f64, device}),
                         .found_inf = empty({1}, {DType::f32, device}),
                         .grad_factor = empty({1}, {DType::f32, device})};
  ERGON_KERNEL(device, check_gradients,
               {.tensors = tensors,
                .loss_scale = options.loss_scale.defined() ? options.loss_scale.data<float>() : nullptr,
                .max_norm = options.max_norm,
                .unscale = options.unscale,
                .partials = partials.data<double>(),
                .norm = result.norm.data<double>(),
                .found_inf = result.found_inf.data<float>(),
                .grad_factor = result.grad_factor.data<float>()});
  return result;
}

}  // namespace ergon::optim
