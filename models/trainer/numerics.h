#pragma once

// Which layer needs fp32? What every module's results, and the gradients of them, would lose in half
// precision.

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "models/nn/module.h"
#include "ops/numerics.h"

namespace ergon::trainer {

struct ModuleNumerics {
  std::string name;
  ops::NumericsSummary output;
  ops::NumericsSummary gradient;  // of the loss with respect to the output; all zeros: none came
};

// Watches the modules of a model between watch() and take(): each one's results (see Module::call) and their
// gradients, over all forward and backward passes in between. One pass over each tensor; the device is waited
// for in take() alone. Uses the modules' on_output.
class NumericsMonitor {
 public:
  // `target`: bf16 or f16, the dtype asked about. The model must outlive the monitor and stay on its device.
  NumericsMonitor(nn::Module& model, DType target);
  ~NumericsMonitor();
  NumericsMonitor(const NumericsMonitor&) = delete;
  NumericsMonitor& operator=(const NumericsMonitor&) = delete;

  void watch();
  // Of the modules that had a result, in their order.
  std::vector<ModuleNumerics> take();
  DType target() const { return target_; }

 private:
  void stop();

  nn::Module& model_;
  DType target_;
  std::vector<std::string> names_;
  std::shared_ptr<struct NumericsSlots> slots_;  // gradients' hooks hold it too
};

// {"dtype": "f16", "modules": {"transformer.ln_f": {"output": {"amax": ...}, "gradient": {...}}, ...}}
nlohmann::json to_json(const std::vector<ModuleNumerics>& modules, DType target);

// Some lines for people: modules with infinities, NaN or values above the range, then those whose gradients
// lose the most.
std::string describe(const std::vector<ModuleNumerics>& modules, DType target);

}  // namespace ergon::trainer
