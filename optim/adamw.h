#pragma once

#include "optim/optimizer.h"

namespace ergon::optim {

struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;  // of groups that do not say otherwise
  // How weights and states are kept: StorageOptions.
  bool master_weights = false;
  bool stochastic_rounding = false;
  DType state_dtype = DType::f32;
  std::uint64_t seed = 0;
};

// Adam (Kingma & Ba 2015, arXiv 1412.6980) with decoupled weight decay (Loshchilov & Hutter 2019, arXiv
// 1711.05101), as PyTorch computes it; one fused pass over all parameters. States: exp_avg, exp_avg_sq.
class AdamW : public Optimizer {
 public:
  // Throws Error if lr, eps or weight_decay is negative, or a beta is outside [0, 1).
  explicit AdamW(std::vector<ParamGroup> groups, const AdamWOptions& options = {});
  explicit AdamW(const NamedTensors& params, const AdamWOptions& options = {});

 protected:
  void update(Device device, const kernels::OptimizerStep& step) override;

 private:
  AdamWOptions options_;
};

}  // namespace ergon::optim
