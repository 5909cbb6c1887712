#include "optim/grad_scaler.h"

#include <cmath>

#include "core/autograd.h"
#include "kernels/grad_scale.h"
#include "ops/arithmetic.h"
#include "ops/dispatch.h"

namespace ergon::optim {

GradScaler::GradScaler(const GradScalerOptions& o) : options_(o) {
  const auto check = [](const char* name, double value, bool good, const char* expected) {
    ERGON_CHECK(good, "[GradScaler] {} is {}: expected {}", name, value, expected);
  };
  check("growth_factor", o.growth_factor, o.growth_factor > 1 && std::isfinite(o.growth_factor),
        "a number above 1");
  check("backoff_factor", o.backoff_factor, o.backoff_factor > 0 && o.backoff_factor < 1,
        "a number in (0, 1)");
  ERGON_CHECK(o.growth_interval >= 1, "[GradScaler] growth_interval is {}: expected 1 or more",
              o.growth_interval);
  load_state({.scale = o.init_scale});
}

void GradScaler::place(Device device) {
  if (scale_.device() == device) return;
  scale_ = scale_.to(device);
  counts_ = counts_.to(device);
}

Tensor GradScaler::scale(const Tensor& loss) {
  place(loss.device());
  return ops::mul(loss, scale_);
}

GradScaler::Checked& GradScaler::check(const char* op, Optimizer& optimizer,
                                       const GradCheckOptions& options) {
  NoGradGuard no_grad;
  const std::vector<Tensor> params = optimizer.parameters();
  place(params[0].device());
  GradCheckOptions with_scale = options;
  with_scale.loss_scale = scale_;
  Checked checked{.result = check_gradients(op, params, with_scale), .unscaled = options.unscale};
  ERGON_CHECK(checked.result.norm.defined(), "[{}] no parameter has a gradient: call backward first", op);
  if (hook_) hook_(checked.result.found_inf);
  return checked_[&optimizer] = checked;
}

Tensor GradScaler::unscale(Optimizer& optimizer) {
  constexpr const char* kName = "GradScaler::unscale";
  ERGON_CHECK(!checked_.contains(&optimizer),
              "[{}] called after {} of the same optimiser: expected update() between", kName,
              checked_[&optimizer].stepped ? "step()" : "unscale()");
  for (const Tensor& param : optimizer.parameters()) {
    ERGON_CHECK(
        !param.grad().defined() || param.grad().dtype() != DType::f16,
        "[{}] a gradient of shape {} is f16, which would lose small values: leave unscale() out, step() "
        "can clip",
        kName, param.shape());
  }
  return check(kName, optimizer, {.unscale = true}).result.norm;
}

Tensor GradScaler::step(Optimizer& optimizer, const ScaledStepOptions& options) {
  constexpr const char* kName = "GradScaler::step";
  const auto found = checked_.find(&optimizer);
  const bool unscaled = found != checked_.end();
  ERGON_CHECK(!unscaled || !found->second.stepped,
              "[{}] called twice for the same optimiser: expected update() between", kName);
  ERGON_CHECK(!unscaled || options.max_norm == 0,
              "[{}] max_norm is {} after unscale(): clip with clip_grad_norm(), or leave unscale() out",
              kName, options.max_norm);
  Checked& checked = unscaled ? found->second : check(kName, optimizer, {.max_norm = options.max_norm});
  optimizer.step({.grad_factor = unscaled ? Tensor() : checked.result.grad_factor,
                  .found_inf = checked.result.found_inf});
  checked.stepped = true;
  return checked.result.norm;
}

void GradScaler::update() {
  NoGradGuard no_grad;
  ERGON_CHECK(!checked_.empty(), "[GradScaler::update] called before a step()");
  Tensor found_inf;
  for (const auto& [optimizer, checked] : checked_) {
    found_inf = found_inf.defined() ? found_inf + checked.result.found_inf : checked.result.found_inf;
  }
  ERGON_KERNEL(scale_.device(), update_scale,
               {.scale = scale_.data<float>(),
                .counts = reinterpret_cast<kernels::ScalerCounts*>(counts_.data<std::int64_t>()),
                .found_inf = found_inf.data<float>(),
                .growth = static_cast<float>(options_.growth_factor),
                .backoff = static_cast<float>(options_.backoff_factor),
                .growth_interval = options_.growth_interval});
  scale_.bump_version();
  checked_.clear();
}

GradScalerState GradScaler::state() const {
  const std::vector<std::int64_t> counts = counts_.to_vector<std::int64_t>();
  return {.scale = scale_.item<double>(),
          .good_steps = counts[0],
          .skipped_steps = counts[1],
          .consecutive_skips = counts[2]};
}

void GradScaler::load_state(const GradScalerState& state) {
  const auto scale = static_cast<float>(state.scale);
  ERGON_CHECK(scale > 0 && std::isfinite(scale),
              "[GradScaler] the scale is {}: expected a positive fp32 number", state.scale);
  const Device device = scale_.defined() ? scale_.device() : Device::cpu();
  scale_ = full({}, state.scale, {DType::f32, device});
  counts_ = from_vector<std::int64_t>({state.good_steps, state.skipped_steps, state.consecutive_skips}, {3},
                                      {DType::i64, device});
}

}  // namespace ergon::optim
