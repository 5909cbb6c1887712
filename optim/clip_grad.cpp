#include "optim/clip_grad.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "optim/grad_check.h"

namespace ergon::optim {

double grad_norm(const std::vector<Tensor>& params) {
  const Tensor norm = check_gradients("grad_norm", params, {}).norm;
  return norm.defined() ? norm.item<double>() : 0;
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
