#pragma once

// A run that chooses its own precision: it starts in half precision and mends what goes wrong.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "models/nn/module.h"
#include "models/trainer/numerics.h"
#include "optim/grad_scaler.h"

namespace ergon::trainer {

struct AutoPrecisionOptions {
  std::int64_t watch_interval = 50;    // steps between looks at every layer's numerics
  double underflow_limit = 0.3;        // share of the gradients' elements, averaged over the layers ...
  std::int64_t underflow_reports = 3;  // ... in so many looks one after another: fp16 is left
  std::int64_t most_skips = 12;  // steps skipped one after another with finite activations: fp16 is left
  double spike_factor = 2;       // a loss above this times its moving average is a spike: a look follows
};

// One change, or cause for one.
struct PrecisionDecision {
  std::string action;  // "switch to bf16", "raise to fp32", "look at the numerics"
  std::string module;  // that is raised; else empty
  std::string reason;
};

// What the trainer knows after a step.
struct StepReport {
  std::int64_t step = 0;
  double loss = 0;
  std::optional<optim::GradScalerState> scaler = {};      // in fp16
  const std::vector<ModuleNumerics>* numerics = nullptr;  // if the step was watched; as f16 would hold it
};

class AutoPrecision {
 public:
  // The model must outlive this. start: f16 or bf16.
  AutoPrecision(nn::Module& model, DType start, const AutoPrecisionOptions& options = {});

  // Where to start, unless told otherwise: CPUs and GPUs of sm_80 and newer, all that Ergon runs on, compute
  // bf16 as fast as f16, and it has the range of fp32.
  static constexpr DType kStart = DType::bf16;

  DType dtype() const { return dtype_; }
  // Is the step with this number (from 1) to be watched?
  bool wants_numerics(std::int64_t step) const;

  // Looks at a step, and changes dtype() and the model's precision() where need be:
  //   a layer whose result is infinite or NaN in fp16, though all that it is made of is finite, is raised to
  //   fp32: the first one of the step;
  //   fp16 becomes bf16 when gradients underflow in several looks, or when steps are skipped again and again
  //   though no activation is infinite.
  // A skipped step, a spike of the loss and a layer just raised make the next step a watched one.
  std::vector<PrecisionDecision> after_step(const StepReport& report);

  // For checkpoints. load_state raises the layers again; throws Error for a layer that the model lacks.
  nlohmann::json state() const;
  void load_state(const nlohmann::json& state);

 private:
  using Decisions = std::vector<PrecisionDecision>;
  void leave_fp16(std::string reason, Decisions& decisions);
  void raise(const std::string& module, std::string reason, Decisions& decisions);
  void check_overflow(const StepReport& report, Decisions& decisions);
  void check_underflow(const StepReport& report, Decisions& decisions);
  void check_spike(const StepReport& report, Decisions& decisions);
  nn::Module& module_named(const std::string& name) const;

  nn::Module& model_;
  AutoPrecisionOptions options_;
  DType dtype_;
  std::vector<std::string> raised_;     // modules in fp32
  bool watch_next_ = false;             // an event asks for a look
  std::int64_t underflow_reports_ = 0;  // the newest looks, all above the limit
  double average_loss_ = 0;             // exponential, over about 50 steps
  std::int64_t averaged_ = 0;           // losses in it
};

}  // namespace ergon::trainer
