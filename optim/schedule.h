#pragma once

// Learning rates as functions of the step, from 0. All start with `warmup` steps that rise linearly from lr /
// warmup to lr.

#include <cstdint>
#include <functional>

namespace ergon::optim {

using Schedule = std::function<double(std::int64_t step)>;

struct ScheduleOptions {
  double lr = 1e-3;              // the highest
  double min_lr = 0;             // the last
  std::int64_t warmup = 0;       // steps
  std::int64_t steps = 0;        // in total, warm-up included; later steps have min_lr
  std::int64_t decay_steps = 0;  // of warm-up-stable-decay: the last ones, which go down
};

// Each throws Error if a number is negative, min_lr is above lr, or warm-up and decay do not fit in `steps`.
Schedule constant(const ScheduleOptions& options);  // min_lr and steps are not used
Schedule cosine(const ScheduleOptions& options);  // Loshchilov & Hutter 2017, arXiv 1608.03983, one half-wave
Schedule linear(const ScheduleOptions& options);
// Stays at lr until the last decay_steps, which go down as 1 - sqrt (Hägele et al. 2024, arXiv 2405.18392).
Schedule warmup_stable_decay(const ScheduleOptions& options);

}  // namespace ergon::optim
