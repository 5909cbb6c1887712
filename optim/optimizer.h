#pragma once

// What all optimisers share: parameter groups, gradients, how weights and states are kept, and a state that
// checkpoints hold.

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

// How an optimiser keeps weights and states; the options of each have these under the same names.
struct StorageOptions {
  bool master_weights = false;       // fp32 copies of bf16 and f16 parameters, which are rounded from them
  bool stochastic_rounding = false;  // bf16 parameters without masters: rounded up or down at random
  // f32, bf16 (rounded stochastically), or u8: block-wise dynamic 8-bit codes (kernels/dynamic_code.h). Those
  // of tensors under kSmallestReduced elements stay f32, those of f64 parameters f64.
  DType state_dtype = DType::f32;
  std::uint64_t seed = 0;  // of stochastic rounding
};
inline constexpr std::int64_t kSmallestReduced = 4096;

template <class Options>
StorageOptions storage_of(const Options& o) {
  return {o.master_weights, o.stochastic_rounding, o.state_dtype, o.seed};
}

struct StepOptions {
  double grad_scale = 1;  // gradients are multiplied by it on the way: clipping, or undoing a loss scale
  // One f32 each on the parameters' device, read there without waiting for it; undefined: not used.
  Tensor grad_factor = {};  // multiplied by as well
  Tensor found_inf = {};    // where it is not 0 nothing changes and the step does not count
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // Updates every parameter that has a gradient, in one pass over memory. A master whose parameter got
  // other values since the last step (loaded weights, a broadcast) is taken from it anew. Throws Error naming
  // the parameter if its gradient is on another device or of another dtype.
  void step(const StepOptions& options = {});
  // Gradients become undefined; with set_to_none = false, zeros.
  void zero_grad(bool set_to_none = true);

  double learning_rate() const { return lr_; }
  void set_learning_rate(double lr) { lr_ = lr; }
  // Steps made; after a step with found_inf this waits for the device.
  std::int64_t steps() const;
  // Every parameter, in order.
  std::vector<Tensor> parameters() const;
  // The parameters under their names as exactly as there are: masters where the optimiser keeps them. To
  // export fp32 weights; the parameters themselves are what the model computes with.
  NamedTensors master_parameters() const;

  // The state as tensors: "step", and "exp_avg.<parameter>" and the like, "exp_avg_scale.<parameter>" for
  // 8-bit ones, "master.<parameter>". Shares memory with the optimiser.
  NamedTensors state_dict() const;
  // Copies a state in. Throws Error before anything is changed, naming the key, the expected and the actual,
  // when it does not fit the parameters and options.
  void load_state_dict(const NamedTensors& state);

 protected:
  // state_names: of the tensors that the optimiser keeps for each parameter, at most two; the first is
  // signed, the second is not negative. `name`: the optimiser's, for errors.
  Optimizer(const char* name, std::vector<ParamGroup> groups, double lr, double weight_decay,
            std::vector<std::string> state_names, const StorageOptions& storage);

  virtual void update(Device device, const kernels::OptimizerStep& step) = 0;

 private:
  struct Slot {
    std::string name;
    Tensor param;
    double lr_scale;
    double weight_decay;
    std::vector<Tensor> states;
    std::vector<Tensor> scales = {};  // of 8-bit states, f32
    Tensor master = {};               // f32, or undefined
    std::uint64_t version = 0;        // of param when the master was the same
  };
  static void refresh_master(Slot& slot);
  void add_storage(Slot& slot, const char* name) const;
  kernels::OptimizerTensor describe(std::size_t index, const Tensor& grad) const;

  std::vector<Slot> slots_;
  std::vector<std::string> state_names_;
  StorageOptions storage_;
  double lr_;
  std::int64_t attempts_ = 0;  // steps, the skipped ones included
  Tensor skipped_;             // (1) i64 where the parameters are; undefined before the first found_inf
};

}  // namespace ergon::optim
