#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace ergon::optim {
namespace {

void check(const char* name, const ScheduleOptions& o, std::int64_t decay) {
  ERGON_CHECK(std::isfinite(o.lr) && o.lr >= 0, "[{}] lr is {}: expected a finite number, 0 or more", name,
              o.lr);
  ERGON_CHECK(o.min_lr >= 0 && o.min_lr <= o.lr, "[{}] min_lr is {}: expected a number in [0, lr = {}]", name,
              o.min_lr, o.lr);
  ERGON_CHECK(o.warmup >= 0 && decay >= 0 && o.warmup + decay <= o.steps,
              "[{}] {} steps of warm-up and {} of decay do not fit in {} steps", name, o.warmup, decay,
              o.steps);
}

// Warm-up, lr until `decay_start`, then from lr to min_lr along shape(x), which falls from 1 to 0 over [0,
// 1].
template <class Shape>
Schedule build(const ScheduleOptions& o, std::int64_t decay_start, Shape shape) {
  return [=](std::int64_t step) {
    if (step < o.warmup) return o.lr * static_cast<double>(step + 1) / static_cast<double>(o.warmup);
    if (step < decay_start) return o.lr;
    if (step >= o.steps) return o.min_lr;
    const double x = static_cast<double>(step - decay_start) / static_cast<double>(o.steps - decay_start);
    return o.min_lr + (o.lr - o.min_lr) * shape(x);
  };
}

}  // namespace

Schedule constant(const ScheduleOptions& options) {
  ScheduleOptions o = options;
  o.steps = std::max(o.steps, o.warmup);
  o.min_lr = o.lr;
  check("constant", o, 0);
  return build(o, o.steps, [](double) { return 1.0; });
}

Schedule cosine(const ScheduleOptions& o) {
  check("cosine", o, 0);
  return build(o, o.warmup, [](double x) { return 0.5 * (1 + std::cos(std::numbers::pi * x)); });
}

Schedule linear(const ScheduleOptions& o) {
  check("linear", o, 0);
  return build(o, o.warmup, [](double x) { return 1 - x; });
}

Schedule warmup_stable_decay(const ScheduleOptions& o) {
  check("warmup_stable_decay", o, o.decay_steps);
  return build(o, o.steps - o.decay_steps, [](double x) { return 1 - std::sqrt(x); });
}

}  // namespace ergon::optim
