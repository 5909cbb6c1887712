#include "optim/optimizer.h"

#include <map>
#include <set>

#include "core/autograd.h"
#include "core/op_scope.h"

namespace ergon::optim {

std::vector<ParamGroup> decay_groups(const NamedTensors& params, double weight_decay) {
  std::vector<ParamGroup> groups{{.params = {}, .weight_decay = weight_decay},
                                 {.params = {}, .weight_decay = 0}};
  for (const auto& [name, param] : params) groups[param.dim() >= 2 ? 0 : 1].params.emplace_back(name, param);
  return groups;
}

Optimizer::Optimizer(std::vector<ParamGroup> groups, double lr, double weight_decay,
                     std::vector<std::string> state_names)
    : state_names_(std::move(state_names)), lr_(lr) {
  std::set<std::string> names;
  std::set<const TensorImpl*> seen;
  for (const ParamGroup& group : groups) {
    for (const auto& [name, param] : group.params) {
      ERGON_CHECK(param.defined() && is_floating_point(param.dtype()) && param.is_contiguous(),
                  "[optimizer] parameter {}: expected a contiguous floating-point tensor", name);
      ERGON_CHECK(names.insert(name).second, "[optimizer] two parameters are named {}", name);
      ERGON_CHECK(seen.insert(param.impl().get()).second, "[optimizer] parameter {} is listed twice", name);
      const Device device = slots_.empty() ? param.device() : slots_[0].param.device();
      ERGON_CHECK(param.device() == device, "[optimizer] parameter {} is on {}, the first one on {}", name,
                  to_string(param.device()), to_string(device));
      Slot slot{name, param, group.lr_scale, group.weight_decay.value_or(weight_decay), {}};
      const TensorOptions state_options{param.dtype() == DType::f64 ? DType::f64 : DType::f32,
                                        param.device()};
      for (std::size_t i = 0; i < state_names_.size(); ++i)
        slot.states.push_back(zeros(param.shape(), state_options));
      slots_.push_back(std::move(slot));
    }
  }
  ERGON_CHECK(!slots_.empty(), "[optimizer] no parameters");
}

void Optimizer::step(const StepOptions& options) {
  NoGradGuard no_grad;
  OpScope scope("optimizer_step");
  TensorList tensors(slots_[0].param.device());
  std::vector<Tensor> keep_alive;  // contiguous copies of strided gradients
  for (const Slot& slot : slots_) {
    Tensor grad = slot.param.grad();
    if (!grad.defined()) continue;
    ERGON_CHECK(grad.device() == slot.param.device(), "[optimizer] parameter {} is on {}, its gradient on {}",
                slot.name, to_string(slot.param.device()), to_string(grad.device()));
    if (!grad.is_contiguous()) keep_alive.push_back(grad = grad.contiguous());
    tensors.add({.dtype = slot.param.dtype(),
                 .numel = slot.param.numel(),
                 .param = slot.param.data_ptr(),
                 .grad = grad.data_ptr(),
                 .state0 = !slot.states.empty() ? slot.states[0].data_ptr() : nullptr,
                 .state1 = slot.states.size() > 1 ? slot.states[1].data_ptr() : nullptr,
                 .lr = lr_ * slot.lr_scale,
                 .weight_decay = slot.weight_decay});
    slot.param.bump_version();
  }
  update(tensors, options.grad_scale);
  ++steps_;
}

void Optimizer::zero_grad(bool set_to_none) {
  for (Slot& slot : slots_) {
    if (set_to_none || !slot.param.grad().defined()) {
      slot.param.zero_grad();
    } else {
      slot.param.grad().zero_();
    }
  }
}

std::vector<Tensor> Optimizer::parameters() const {
  std::vector<Tensor> params;
  for (const Slot& slot : slots_) params.push_back(slot.param);
  return params;
}

NamedTensors Optimizer::state_dict() const {
  NamedTensors state{{"step", from_vector<std::int64_t>({steps_}, {1}, {DType::i64})}};
  for (const Slot& slot : slots_) {
    for (std::size_t i = 0; i < state_names_.size(); ++i) {
      state.emplace_back(state_names_[i] + "." + slot.name, slot.states[i]);
    }
  }
  return state;
}

void Optimizer::load_state_dict(const NamedTensors& state) {
  std::map<std::string, Tensor> given(state.begin(), state.end());
  const NamedTensors wanted = state_dict();
  for (const auto& [key, tensor] : wanted) {
    const auto found = given.find(key);
    ERGON_CHECK(found != given.end(), "[optimizer] state {} of shape {} is missing", key, tensor.shape());
    ERGON_CHECK(found->second.shape() == tensor.shape() && found->second.dtype() == tensor.dtype(),
                "[optimizer] state {}: expected {} {}, got {} {}", key, tensor.shape(),
                name_of(tensor.dtype()), found->second.shape(), name_of(found->second.dtype()));
  }
  ERGON_CHECK(given.size() == wanted.size(),
              "[optimizer] the state has {} tensors, expected {}: it is of other parameters", given.size(),
              wanted.size());
  NoGradGuard no_grad;
  for (const auto& [key, tensor] : wanted) Tensor(tensor).copy_(given.at(key));
  steps_ = given.at("step").item<std::int64_t>();
}

}  // namespace ergon::optim
