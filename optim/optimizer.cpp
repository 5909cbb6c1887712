#include "optim/optimizer.h"

#include <map>
#include <set>

#include "core/autograd.h"
#include "core/op_scope.h"
#include "kernels/dynamic_code.h"

namespace ergon::optim {

std::vector<ParamGroup> decay_groups(const NamedTensors& params, double weight_decay) {
  std::vector<ParamGroup> groups{{.params = {}, .weight_decay = weight_decay},
                                 {.params = {}, .weight_decay = 0}};
  for (const auto& [name, param] : params) groups[param.dim() >= 2 ? 0 : 1].params.emplace_back(name, param);
  return groups;
}

Optimizer::Optimizer(const char* name, std::vector<ParamGroup> groups, double lr, double weight_decay,
                     std::vector<std::string> state_names, const StorageOptions& storage)
    : state_names_(std::move(state_names)), storage_(storage), lr_(lr) {
  ERGON_CHECK(!storage.master_weights || !storage.stochastic_rounding,
              "[{}] master_weights and stochastic_rounding: expected one of them", name);
  ERGON_CHECK(storage.state_dtype == DType::f32 || storage.state_dtype == DType::bf16
                  || storage.state_dtype == DType::u8,
              "[{}] state_dtype is {}: expected f32, bf16 or u8", name, name_of(storage.state_dtype));
  std::set<std::string> names;
  std::set<const TensorImpl*> seen;
  for (const ParamGroup& group : groups) {
    for (const auto& [param_name, param] : group.params) {
      ERGON_CHECK(param.defined() && is_floating_point(param.dtype()) && param.is_contiguous(),
                  "[optimizer] parameter {}: expected a contiguous floating-point tensor", param_name);
      ERGON_CHECK(names.insert(param_name).second, "[optimizer] two parameters are named {}", param_name);
      ERGON_CHECK(seen.insert(param.impl().get()).second, "[optimizer] parameter {} is listed twice",
                  param_name);
      const Device device = slots_.empty() ? param.device() : slots_[0].param.device();
      ERGON_CHECK(param.device() == device, "[optimizer] parameter {} is on {}, the first one on {}",
                  param_name, to_string(param.device()), to_string(device));
      Slot slot{param_name, param, group.lr_scale, group.weight_decay.value_or(weight_decay), {}};
      add_storage(slot, name);
      slots_.push_back(std::move(slot));
    }
  }
  ERGON_CHECK(!slots_.empty(), "[optimizer] no parameters");
}

void Optimizer::add_storage(Slot& slot, const char* name) const {
  NoGradGuard no_grad;
  const Tensor& param = slot.param;
  const Device device = param.device();
  ERGON_CHECK(!storage_.stochastic_rounding || param.dtype() != DType::f16,
              "[{}] stochastic_rounding and parameter {} of f16: expected bf16, or master_weights", name,
              slot.name);
  if (storage_.master_weights && is_half(param.dtype())) {
    slot.master = param.detach().to(DType::f32);
    slot.version = param.version();
  }
  DType dtype = param.numel() < kSmallestReduced ? DType::f32 : storage_.state_dtype;
  if (param.dtype() == DType::f64) dtype = DType::f64;
  for (std::size_t i = 0; i < state_names_.size(); ++i) {
    const bool is_code = dtype == DType::u8;
    const int zero = !is_code ? 0
                     : i == 0 ? kernels::DynamicCode<true>::kZero
                              : kernels::DynamicCode<false>::kZero;
    slot.states.push_back(full(param.shape(), zero, {dtype, device}));
    if (is_code) slot.scales.push_back(zeros({kernels::code_blocks(param.numel())}, {DType::f32, device}));
  }
}

kernels::OptimizerTensor Optimizer::describe(std::size_t index, const Tensor& grad) const {
  const Slot& slot = slots_[index];
  kernels::OptimizerTensor tensor{
      .dtype = slot.param.dtype(),
      .state_dtype = slot.param.dtype() == DType::f64 ? DType::f64 : DType::f32,
      .stochastic = storage_.stochastic_rounding && slot.param.dtype() == DType::bf16,
      .number = static_cast<std::uint32_t>(index),
      .numel = slot.param.numel(),
      .param = slot.param.data_ptr(),
      .grad = grad.data_ptr(),
      .master = slot.master.defined() ? slot.master.data<float>() : nullptr,
      .lr = lr_ * slot.lr_scale,
      .weight_decay = slot.weight_decay};
  for (std::size_t i = 0; i < slot.states.size(); ++i) {
    tensor.state_dtype = slot.states[i].dtype();
    tensor.states[i] = slot.states[i].data_ptr();
    if (!slot.scales.empty()) tensor.scales[i] = slot.scales[i].data<float>();
  }
  return tensor;
}

// Loading the very weights that were rounded from the master leaves it as exact as it is.
void Optimizer::refresh_master(Slot& slot) {
  if (!slot.master.defined() || slot.version == slot.param.version()) return;
  if (!equal_bits(slot.master.to(slot.param.dtype()), slot.param.detach())) slot.master.copy_(slot.param);
}

void Optimizer::step(const StepOptions& options) {
  NoGradGuard no_grad;
  OpScope scope("optimizer_step");
  const Device device = slots_[0].param.device();
  TensorList tensors(device);
  std::vector<Tensor> keep_alive;  // contiguous copies of strided gradients
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    Tensor grad = slot.param.grad();
    if (!grad.defined()) continue;
    ERGON_CHECK(grad.device() == device && grad.dtype() == slot.param.dtype(),
                "[optimizer] parameter {} is {} on {}, its gradient {} on {}", slot.name,
                name_of(slot.param.dtype()), to_string(device), name_of(grad.dtype()),
                to_string(grad.device()));
    if (!grad.is_contiguous()) keep_alive.push_back(grad = grad.contiguous());
    refresh_master(slot);
    tensors.add(describe(i, grad));
    slot.param.bump_version();
    slot.version = slot.param.version();
  }
  if (options.found_inf.defined() && !skipped_.defined()) skipped_ = zeros({1}, {DType::i64, device});
  const auto address = [&](const char* name, const Tensor& tensor) -> const float* {
    if (!tensor.defined()) return nullptr;
    ERGON_CHECK(tensor.dtype() == DType::f32 && tensor.numel() == 1 && tensor.device() == device,
                "[optimizer] {} is {} {} on {}: expected one f32 on {}", name, tensor.shape(),
                name_of(tensor.dtype()), to_string(tensor.device()), to_string(device));
    return tensor.data<float>();
  };
  update(device, {.tensors = tensors.get(),
                  .grad_scale = options.grad_scale,
                  .grad_factor = address("grad_factor", options.grad_factor),
                  .found_inf = address("found_inf", options.found_inf),
                  .skipped = skipped_.defined() ? skipped_.data<std::int64_t>() : nullptr,
                  .step = attempts_ + 1,
                  .seed = storage_.seed});
  ++attempts_;
}

std::int64_t Optimizer::steps() const {
  return attempts_ - (skipped_.defined() ? skipped_.item<std::int64_t>() : 0);
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

NamedTensors Optimizer::master_parameters() const {
  NamedTensors params;
  for (const Slot& slot : slots_) {
    params.emplace_back(slot.name, slot.master.defined() ? slot.master : slot.param.detach());
  }
  return params;
}

NamedTensors Optimizer::state_dict() const {
  NamedTensors state{{"step", from_vector<std::int64_t>({steps()}, {1}, {DType::i64})}};
  for (const Slot& slot : slots_) {
    for (std::size_t i = 0; i < state_names_.size(); ++i) {
      state.emplace_back(state_names_[i] + "." + slot.name, slot.states[i]);
      if (!slot.scales.empty()) state.emplace_back(state_names_[i] + "_scale." + slot.name, slot.scales[i]);
    }
    if (slot.master.defined()) state.emplace_back("master." + slot.name, slot.master);
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
              "[optimizer] the state has {} tensors, expected {}: it is of other parameters or options",
              given.size(), wanted.size());
  NoGradGuard no_grad;
  for (const auto& [key, tensor] : wanted) Tensor(tensor).copy_(given.at(key));
  attempts_ = given.at("step").item<std::int64_t>();
  skipped_ = {};
  for (Slot& slot : slots_) slot.version = slot.param.version();
}

}  // namespace ergon::optim
