#pragma once

// Dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv 1710.03740), with the interface of PyTorch's
// torch.amp.GradScaler:
//
//   optim::GradScaler scaler;
//   scaler.scale(loss).backward();                // once a micro-batch
//   scaler.step(optimizer, {.max_norm = 1.0});    // clips, unscales, skips the step at inf or NaN
//   scaler.update();                              // once a step, after all optimisers
//
// The scale, the flags and the factor of the gradients stay on the device; nothing here waits for it but
// state() and get_scale().

#include <cstdint>
#include <functional>
#include <map>

#include "core/tensor.h"
#include "optim/grad_check.h"
#include "optim/optimizer.h"

namespace ergon::optim {

struct GradScalerOptions {
  double init_scale = 65536;
  double growth_factor = 2;             // after growth_interval steps without inf or NaN
  double backoff_factor = 0.5;          // after a step with one
  std::int64_t growth_interval = 2000;  // steps
};

struct GradScalerState {
  double scale = 0;
  std::int64_t good_steps = 0;         // since the scale changed last
  std::int64_t skipped_steps = 0;      // in total
  std::int64_t consecutive_skips = 0;  // the newest steps, all skipped
};

struct ScaledStepOptions {
  double max_norm = 0;  // of the unscaled gradients' 2-norm; 0: no clipping
};

class GradScaler {
 public:
  // Throws Error for a scale that is not positive, growth_factor <= 1, backoff_factor outside (0, 1), or
  // growth_interval < 1.
  explicit GradScaler(const GradScalerOptions& options = {});

  // loss * scale, in fp32 at least. The first call, or the first step, decides on the device.
  Tensor scale(const Tensor& loss);

  // Divides the gradients by the scale in place, to look at them or change them before step(), in one pass
  // that also looks for inf and NaN. Returns their norm, one f64 where they are. step() does without it, and
  // spares the writing; throws Error for f16 gradients, whose small values would be lost.
  Tensor unscale(Optimizer& optimizer);

  // One pass over the gradients that looks for inf and NaN and takes the norm (not after unscale()), then
  // optimizer.step() with the factor that unscales and clips; at inf or NaN nothing changes. Returns the
  // unscaled gradients' norm before clipping, one f64 where they are. Throws Error when there is no gradient,
  // when called again before update(), and for max_norm after unscale().
  Tensor step(Optimizer& optimizer, const ScaledStepOptions& options = {});

  // Lowers the scale if any optimiser found inf or NaN since the last update, raises it after growth_interval
  // steps without. Throws Error if no step was made.
  void update();

  // Called with found_inf (one f32: 0 or 1, where the gradients are) after each check: a distributed layer
  // replaces it in place by the maximum over all ranks, so that all of them skip or none.
  void set_found_inf_hook(std::function<void(const Tensor& found_inf)> hook) { hook_ = std::move(hook); }

  // These wait for the device.
  GradScalerState state() const;
  double get_scale() const { return state().scale; }
  // For checkpoints; throws Error for a scale that is not positive.
  void load_state(const GradScalerState& state);

 private:
  struct Checked {
    GradCheckResult result;
    bool unscaled = false;
    bool stepped = false;
  };
  void place(Device device);
  Checked& check(const char* op, Optimizer& optimizer, const GradCheckOptions& options);

  GradScalerOptions options_;
  std::function<void(const Tensor&)> hook_;
  Tensor scale_;                                 // () f32
  Tensor counts_;                                // (3) i64: kernels::ScalerCounts
  std::map<const Optimizer*, Checked> checked_;  // since the last update
};

}  // namespace ergon::optim
