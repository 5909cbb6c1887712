#pragma once

// nn::Module: parameters, buffers and sub-modules with names.
//
//   struct Mlp : nn::Module {
//     Mlp(std::int64_t width) : up(width, 4 * width), down(4 * width, width) {
//       register_module("up", up);
//       register_module("down", down);
//     }
//     Tensor forward(const Tensor& x) { return down(ops::gelu(up(x))); }
//     nn::Linear up, down;
//   };
//
// Modules are members of their parents, registered by reference: they can be neither copied nor moved.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/autocast.h"
#include "core/tensor.h"

namespace ergon::nn {

class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // All parameters, sub-modules' included, as "block.0.fc.weight". A tensor that several modules share (tied
  // weights) is listed once, under its first name.
  NamedTensors named_parameters() const;
  std::vector<Tensor> parameters() const;
  // State that is saved but not trained, such as running statistics.
  NamedTensors named_buffers() const;
  // This module under the name "" and all below it.
  std::vector<std::pair<std::string, Module*>> named_modules();
  // Elements of all parameters.
  std::int64_t num_parameters() const;

  // Parameters and buffers, detached, sharing memory with the module.
  NamedTensors state_dict() const;
  // Copies values into the parameters and buffers, converting dtypes. Throws Error before anything is
  // changed, naming the tensor, the expected and the actual, if a shape differs; also for missing and unknown
  // names, if `strict`.
  void load_state_dict(const NamedTensors& state, bool strict = true);

  // Training or evaluation mode, of this module and all below it.
  void train(bool on = true);
  void eval() { train(false); }
  bool is_training() const { return training_; }

  // Where its parameters and buffers lie (the first of them; a module without any: the CPU).
  Device device() const;
  // Moves parameters and buffers; to(DType) converts those of floating point. Gradients are dropped.
  void to(Device device);
  void to(DType dtype);

  // Calls f on every module below this one, children first, then on this one.
  void apply(const std::function<void(Module&)>& f);
  void zero_grad();

  // In which dtype this module and all below it compute, whatever Autocast scope they are called in: as an
  // Autocast scope of their own whose inputs are converted. None: as the scope around them says. Throws Error
  // unless f32, bf16 or f16.
  void precision(std::optional<DType> dtype);
  std::optional<DType> precision() const { return precision_; }

  // f is shown every result of this module: see call(). An empty one ends that.
  void on_output(std::function<void(const Tensor&)> f) { on_output_ = std::move(f); }

  // f(inputs...) as what this module does: in its precision(), and with the result (of a pair the first)
  // shown to on_output's function. Layer::operator() goes through here; a module that is called in another
  // way puts it there:
  //   Tensor forward(const Tensor& query, const Tensor& memory) {
  //     return call([&](const Tensor& q, const Tensor& m) { return ...; }, query, memory);
  //   }
  template <class F, class... Inputs>
  auto call(F&& f, const Inputs&... inputs) {
    auto result = [&] {
      if (!precision_) return f(inputs...);
      const Autocast guard(*precision_);
      return f(in_precision(inputs)...);
    }();
    if (on_output_) show(result);
    return result;
  }

 protected:
  // `member` must be a member of the module. Sets requires_grad.
  void register_parameter(std::string name, Tensor& member);
  void register_buffer(std::string name, Tensor& member);
  void register_module(std::string name, Module& child);

 private:
  // Calls f(name, tensor, is_parameter) for every registered tensor, shared ones each time.
  void for_each_tensor(const std::string& prefix,
                       const std::function<void(const std::string&, Tensor&, bool)>& f) const;

  Tensor in_precision(const Tensor& input) const;
  void show(const Tensor& result) const { on_output_(result); }
  void show(const std::pair<Tensor, Tensor>& results) const { on_output_(results.first); }

  std::vector<std::pair<std::string, Tensor*>> parameters_;
  std::vector<std::pair<std::string, Tensor*>> buffers_;
  std::vector<std::pair<std::string, Module*>> children_;
  bool training_ = true;
  std::optional<DType> precision_;
  std::function<void(const Tensor&)> on_output_;
};

// A module with one input and one output. To be called as layer(input): forward alone leaves out what call()
// does.
class Layer : public Module {
 public:
  virtual Tensor forward(const Tensor& input) = 0;
  Tensor operator()(const Tensor& input) {
    return call([this](const Tensor& x) { return forward(x); }, input);
  }
};

// Modules of one type under the names "0", "1", ...
template <class M>
class ModuleList : public Module {
 public:
  template <class... Args>
  M& emplace_back(Args&&... args) {
    modules_.push_back(std::make_unique<M>(std::forward<Args>(args)...));
    register_module(std::to_string(modules_.size() - 1), *modules_.back());
    return *modules_.back();
  }
  std::int64_t size() const { return static_cast<std::int64_t>(modules_.size()); }
  M& operator[](std::int64_t i) { return *modules_[static_cast<std::size_t>(i)]; }

  class Iterator {
   public:
    explicit Iterator(const std::unique_ptr<M>* at) : at_(at) {}
    M& operator*() const { return **at_; }
    Iterator& operator++() {
      ++at_;
      return *this;
    }
    bool operator!=(const Iterator& other) const { return at_ != other.at_; }

   private:
    const std::unique_ptr<M>* at_;
  };
  Iterator begin() { return Iterator(modules_.data()); }
  Iterator end() { return Iterator(modules_.data() + modules_.size()); }

 private:
  std::vector<std::unique_ptr<M>> modules_;
};

// Layers one after the other, under the names "0", "1", ...:
//   nn::Sequential net;
//   net.add<nn::Linear>(784, 128).add<nn::ReLU>().add<nn::Linear>(128, 10);
class Sequential : public Layer {
 public:
  template <class L, class... Args>
  Sequential& add(Args&&... args) {
    layers_.push_back(std::make_unique<L>(std::forward<Args>(args)...));
    register_module(std::to_string(layers_.size() - 1), *layers_.back());
    return *this;
  }
  Tensor forward(const Tensor& input) override;

 private:
  std::vector<std::unique_ptr<Layer>> layers_;
};

}  // namespace ergon::nn
