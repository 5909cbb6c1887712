#include "optim/clip_grad.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "ops/dispatch.h"
#include "optim/tensor_list.h"

namespace ergon::optim {

double grad_norm(const std::vector<Tensor>& params) {
  OpScope scope("grad_norm");
  std::vector<Tensor> dense;
  for (const Tensor& param : params) {
    if (!param.grad().defined()) continue;
    dense.push_back(param.grad().contiguous());
    ERGON_CHECK(dense.back().device() == dense[0].device(),
                "[grad_norm] gradients on {} and on {}: expected one device", to_string(dense[0].device()),
                to_string(dense.back().device()));
  }
  if (dense.empty()) return 0;
  const Device device = dense[0].device();
  TensorList list(device);
  for (const Tensor& grad : dense) {
    list.add({.dtype = grad.dtype(), .numel = grad.numel(), .grad = grad.data_ptr()});
  }
  const kernels::OptimizerTensors tensors = list.get();
  const Tensor partials = empty({tensors.chunks}, {DType::f64, device}), sum = empty({}, partials.options());
  ERGON_KERNEL(device, sum_of_squares,
               {.tensors = tensors,
                .partials = static_cast<double*>(partials.data_ptr()),
                .sum = static_cast<double*>(sum.data_ptr())});
  return std::sqrt(sum.item<double>());
}

double clip_scale(double norm, double max_norm) {
  if (max_norm <= 0 || !std::isfinite(norm)) return 1;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

double clip_grad_norm(const std::vector<Tensor>& params, double max_norm) {
  NoGradGuard no_grad;
  const double norm = grad_norm(params);
  const double scale = clip_scale(norm, max_norm);
  if (scale == 1) return norm;
  for (const Tensor& param : params) {
    Tensor grad = param.grad();
    if (grad.defined()) grad *= scale;
  }
  return norm;
}

}  // namespace ergon::optim
