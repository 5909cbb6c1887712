#pragma once

// All gradients in one pass: norm, infinities, unscaling. Internal to optim; clip_grad.h and grad_scaler.h
// are what users call.

#include <vector>

#include "core/tensor.h"

namespace ergon::optim {

struct GradCheckOptions {
  Tensor loss_scale = {};  // (1) f32 that the loss was multiplied by; undefined: 1
  double max_norm = 0;     // clips; 0: does not
  bool unscale = false;    // divides the gradients in place
};

// One element each, where the gradients are; undefined if there is no gradient. See kernels::GradCheck.
struct GradCheckResult {
  Tensor norm;         // f64
  Tensor found_inf;    // f32
  Tensor grad_factor;  // f32
};

// Of the gradients of `params` that are there. Nothing waits for the device. `op` names the caller in errors.
GradCheckResult check_gradients(const char* op, const std::vector<Tensor>& params,
                                const GradCheckOptions& options);

}  // namespace ergon::optim
