#pragma once

#include <vector>

#include "core/tensor.h"

namespace ergon::optim {

// The 2-norm of all gradients together; tensors without one count as zero. NaN or infinity if any gradient
// has one. Deterministic.
double grad_norm(const std::vector<Tensor>& params);

// What to multiply gradients of this norm with so that it becomes at most max_norm: min(1, max_norm / (norm +
// 1e-6)), as PyTorch does; 1 for max_norm 0 and for a norm that is not finite. For
// Optimizer::step({.grad_scale = ...}), which spares a pass over the gradients.
double clip_scale(double norm, double max_norm);

// Multiplies the gradients in place by that factor and returns the norm from before (Pascanu et al. 2013,
// arXiv 1211.5063).
double clip_grad_norm(const std::vector<Tensor>& params, double max_norm);

}  // namespace ergon::optim
