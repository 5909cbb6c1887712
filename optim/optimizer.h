#pragma once

// What all optimisers share: parameter groups, gradients, and a state that checkpoints keep.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "optim/tensor_list.h"

namespace ergon::optim {

// Parameters with options of their own. A list of named parameters converts to one group.
struct ParamGroup {
  NamedTensors params;
  double lr_scale = 1;                                // times the optimiser's learning rate
  std::optional<double> weight_decay = std::nullopt;  // the optimiser's, if not given
};

// Two groups: matrices and larger tensors are decayed, vectors and scalars (biases, norms) are not.
std::vector<ParamGroup> decay_groups(const NamedTensors& params, double weight_decay);

struct StepOptions {
  double grad_scale = 1;  // gradients are multiplied by it on the way: clipping, or undoing a loss scale
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // Updates every parameter that has a gradient, in one pass over memory. Throws Error naming the parameter
  // if its gradient is on another device or of another dtype.
  void step(const StepOptions& options = {});
  // Gradients become undefined; with set_to_none = false, zeros.
  void zero_grad(bool set_to_none = true);

  double learning_rate() const { return lr_; }
  void set_learning_rate(double lr) { lr_ = lr; }
  std::int64_t steps() const { return steps_; }
  // Every parameter, in order.
  std::vector<Tensor> parameters() const;

  // The state as tensors: "step", and "exp_avg.<parameter>" and the like. Shares memory with the optimiser.
  NamedTensors state_dict() const;
  // Copies a state in. Throws Error before anything is changed, naming the key, the expected and the actual,
  // when it does not fit the parameters.
  void load_state_dict(const NamedTensors& state);

 protected:
  // state_names: of the tensors that the optimiser keeps for each parameter, at most two.
  Optimizer(std::vector<ParamGroup> groups, double lr, double weight_decay,
            std::vector<std::string> state_names);

  // One step of all the tensors, number steps() + 1.
  virtual void update(TensorList& tensors, double grad_scale) = 0;

 private:
  struct Slot {
    std::string name;
    Tensor param;
    double lr_scale;
    double weight_decay;
    std::vector<Tensor> states;  // f32, or f64 for f64
  };
  std::vector<Slot> slots_;
  std::vector<std::string> state_names_;
  double lr_;
  std::int64_t steps_ = 0;
};

}  // namespace ergon::optim
