#include "models/nn/module.h"

#include <map>
#include <optional>
#include <set>

#include "core/autograd.h"

namespace ergon::nn {

void Module::register_parameter(std::string name, Tensor& member) {
  member.set_requires_grad(true);
  parameters_.emplace_back(std::move(name), &member);
}

void Module::register_buffer(std::string name, Tensor& member) {
  buffers_.emplace_back(std::move(name), &member);
}

void Module::register_module(std::string name, Module& child) {
  children_.emplace_back(std::move(name), &child);
}

void Module::for_each_tensor(const std::string& prefix,
                             const std::function<void(const std::string&, Tensor&, bool)>& f) const {
  for (const auto& [name, tensor] : parameters_) {
    if (tensor->defined()) f(prefix + name, *tensor, true);
  }
  for (const auto& [name, tensor] : buffers_) {
    if (tensor->defined()) f(prefix + name, *tensor, false);
  }
  for (const auto& [name, child] : children_) child->for_each_tensor(prefix + name + ".", f);
}

NamedTensors Module::named_parameters() const {
  NamedTensors result;
  std::set<const TensorImpl*> seen;
  for_each_tensor("", [&](const std::string& name, Tensor& tensor, bool is_parameter) {
    if (is_parameter && seen.insert(tensor.impl().get()).second) result.emplace_back(name, tensor);
  });
  return result;
}

std::vector<Tensor> Module::parameters() const {
  std::vector<Tensor> result;
  for (const auto& [name, tensor] : named_parameters()) result.push_back(tensor);
  return result;
}

NamedTensors Module::named_buffers() const {
  NamedTensors result;
  for_each_tensor("", [&](const std::string& name, Tensor& tensor, bool is_parameter) {
    if (!is_parameter) result.emplace_back(name, tensor);
  });
  return result;
}

std::vector<std::pair<std::string, Module*>> Module::named_modules() {
  std::vector<std::pair<std::string, Module*>> result{{"", this}};
  for (const auto& [name, child] : children_) {
    for (const auto& [below, module] : child->named_modules()) {
      result.emplace_back(below.empty() ? name : name + "." + below, module);
    }
  }
  return result;
}

std::int64_t Module::num_parameters() const {
  std::int64_t count = 0;
  for (const auto& [name, tensor] : named_parameters()) count += tensor.numel();
  return count;
}

NamedTensors Module::state_dict() const {
  NamedTensors result;
  std::set<const TensorImpl*> seen;
  for_each_tensor("", [&](const std::string& name, Tensor& tensor, bool) {
    if (seen.insert(tensor.impl().get()).second) result.emplace_back(name, tensor.detach());
  });
  return result;
}

void Module::load_state_dict(const NamedTensors& state, bool strict) {
  std::map<std::string, const Tensor*> given;
  for (const auto& [name, tensor] : state) given.emplace(name, &tensor);

  // A shared tensor may be given under any of its names; every name it has is known.
  std::vector<std::pair<Tensor*, const Tensor*>> copies;
  std::set<const TensorImpl*> loaded;
  NamedTensors wanted;
  for_each_tensor("", [&](const std::string& name, Tensor& tensor, bool) {
    wanted.emplace_back(name, tensor);
    const auto found = given.find(name);
    if (found == given.end()) return;
    ERGON_CHECK(found->second->shape() == tensor.shape(), "[load_state_dict] {}: expected shape {}, got {}",
                name, tensor.shape(), found->second->shape());
    copies.emplace_back(&tensor, found->second);
    loaded.insert(tensor.impl().get());
    given.erase(found);
  });
  if (strict) {
    for (const auto& [name, tensor] : wanted) {
      ERGON_CHECK(loaded.contains(tensor.impl().get()), "[load_state_dict] {} of shape {} is missing", name,
                  tensor.shape());
    }
    ERGON_CHECK(given.empty(), "[load_state_dict] {} of shape {} is not in the model ({} such names)",
                given.begin()->first, given.begin()->second->shape(), given.size());
  }
  NoGradGuard no_grad;
  for (const auto& [tensor, source] : copies) tensor->copy_(*source);
}

void Module::train(bool on) {
  apply([on](Module& module) { module.training_ = on; });
}

Device Module::device() const {
  std::optional<Device> found;
  for_each_tensor("", [&](const std::string&, Tensor& tensor, bool) {
    if (!found) found = tensor.device();
  });
  return found.value_or(Device::cpu());
}

void Module::to(Device device) {
  NoGradGuard no_grad;
  for_each_tensor("", [&](const std::string&, Tensor& tensor, bool) {
    tensor.zero_grad();
    tensor.set_data(tensor.to(device));
  });
}

void Module::to(DType dtype) {
  ERGON_CHECK(is_floating_point(dtype), "[to] dtype {}: expected floating point", name_of(dtype));
  NoGradGuard no_grad;
  for_each_tensor("", [&](const std::string&, Tensor& tensor, bool) {
    if (!is_floating_point(tensor.dtype())) return;
    tensor.zero_grad();
    tensor.set_data(tensor.to(dtype));
  });
}

void Module::apply(const std::function<void(Module&)>& f) {
  for (const auto& [name, child] : children_) child->apply(f);
  f(*this);
}

void Module::precision(std::optional<DType> dtype) {
  ERGON_CHECK(!dtype || *dtype == DType::f32 || is_half(*dtype),
              "[precision] dtype {}: expected f32, bf16 or f16", name_of(*dtype));
  apply([dtype](Module& module) { module.precision_ = dtype; });
}

Tensor Module::in_precision(const Tensor& input) const {
  const bool converts = input.defined() && is_floating_point(input.dtype()) && input.dtype() != DType::f64;
  return converts ? input.to(*precision_) : input;
}

void Module::zero_grad() {
  for (Tensor& parameter : parameters()) parameter.zero_grad();
}

Tensor Sequential::forward(const Tensor& input) {
  Tensor hidden = input;
  for (const auto& layer : layers_) hidden = (*layer)(hidden);
  return hidden;
}

}  // namespace ergon::nn
