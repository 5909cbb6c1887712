#pragma once

// Loss scaling: one pass over all gradients that finds infinities and NaN, takes the norm, and unscales; and
// the scale's own way up and down.

#include <limits>

#include "kernels/optimizer.h"

namespace ergon::kernels {

// sum = the sum of squares of all gradients (param and states are not read), NaN and infinity coming
// through: deterministic, relative error below 2^-13.
// *norm = sqrt(sum) / *loss_scale
// *found_inf = sum is finite ? 0 : 1. Finite gradients whose squares leave fp32 (above 2^64) count as
// infinite.
// *grad_factor = clip / *loss_scale, clip = min(1, max_norm / (*norm + 1e-6)), or 1 for max_norm 0
// With `unscale` the gradients are divided by *loss_scale in place, and *grad_factor leaves that out.
// One parallel region, or launch. Bytes: those of the gradients, twice with `unscale`.
struct GradCheck {
  OptimizerTensors tensors;
  const float* loss_scale = nullptr;  // null: 1
  double max_norm = 0;
  bool unscale = false;
  double* partials = nullptr;  // (chunks), a workspace
  double* norm = nullptr;
  float* found_inf = nullptr;    // may be null, with grad_factor
  float* grad_factor = nullptr;  // all where the tensors are

  // The results, from the square root of the sum; kernels call it from one thread.
  constexpr void finish(double root) const {
    const double inverse = loss_scale != nullptr ? 1 / static_cast<double>(*loss_scale) : 1;
    *norm = root * inverse;
    const bool finite = root <= std::numeric_limits<double>::max();
    if (found_inf != nullptr) *found_inf = finite ? 0 : 1;
    if (grad_factor == nullptr) return;
    const double clip = max_norm > 0 && finite ? max_norm / (*norm + 1e-6) : 1;
    *grad_factor = static_cast<float>((clip < 1 ? clip : 1) * (unscale ? 1 : inverse));
  }
};

// What a scaler counts, where its scale lies.
struct ScalerCounts {
  std::int64_t good_steps = 0;   // since the scale changed last
  std::int64_t skipped = 0;      // in total
  std::int64_t consecutive = 0;  // skipped at the end
};

// found_inf: scale *= backoff; else, after growth_interval good steps, scale *= growth if that is finite.
struct ScaleUpdate {
  float* scale = nullptr;
  ScalerCounts* counts = nullptr;
  const float* found_inf = nullptr;
  float growth = 2;
  float backoff = 0.5f;
  std::int64_t growth_interval = 2000;

  // The whole of it; kernels call it from one thread.
  constexpr void apply() const {
    if (*found_inf != 0) {
      *scale *= backoff;
      counts->good_steps = 0;
      ++counts->skipped;
      ++counts->consecutive;
      return;
    }
    counts->consecutive = 0;
    if (++counts->good_steps < growth_interval) return;
    counts->good_steps = 0;
    if (*scale * growth <= std::numeric_limits<float>::max()) *scale *= growth;
  }
};

namespace cpu {
void check_gradients(const GradCheck& check);
void update_scale(const ScaleUpdate& update);
}  // namespace cpu

// One launch each. The last block to finish adds the partials up, in their order.
namespace cuda {
void check_gradients(const GradCheck& check);
void update_scale(const ScaleUpdate& update);
}  // namespace cuda
}  // namespace ergon::kernels
