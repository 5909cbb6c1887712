#pragma once

#include "optim/optimizer.h"

namespace ergon::optim {

struct SGDOptions {
  double lr = 1e-2;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;    // needs momentum and no dampening
  double weight_decay = 0;  // added to the gradient; of groups that do not say otherwise
  // How weights and states are kept: StorageOptions.
  bool master_weights = false;
  bool stochastic_rounding = false;
  DType state_dtype = DType::f32;
  std::uint64_t seed = 0;
};

// Stochastic gradient descent with momentum (Sutskever et al. 2013), as PyTorch computes it. State:
// momentum_buffer.
class SGD : public Optimizer {
 public:
  // Throws Error for options out of range.
  explicit SGD(std::vector<ParamGroup> groups, const SGDOptions& options = {});
  explicit SGD(const NamedTensors& params, const SGDOptions& options = {});

 protected:
  void update(Device device, const kernels::OptimizerStep& step) override;

 private:
  SGDOptions options_;
};

}  // namespace ergon::optim
