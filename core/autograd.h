#pragma once

// Define-by-run reverse-mode differentiation. An op computes its output, then records how to go back:
//
//   Tensor relu(const Tensor& x) {
//     Tensor y = ...;
//     return autograd::record("relu", y, {x}, [y = autograd::save(y)](const Tensor& grad_output, const auto&)
//     {
//       return autograd::Gradients{relu_backward(grad_output, y.get())};
//     });
//   }
//
// backward() runs the recorded nodes in reverse order of creation and adds up the gradients of leaves.
// Backward functions run without recording: gradients of gradients are not supported.

#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace ergon {

// Is recording on for this thread?
bool grad_enabled();

// Switches recording on or off for a scope, on this thread.
class GradModeGuard {
 public:
  explicit GradModeGuard(bool enabled);
  ~GradModeGuard();
  GradModeGuard(const GradModeGuard&) = delete;
  GradModeGuard& operator=(const GradModeGuard&) = delete;

 private:
  bool previous_;
};

// No recording in this scope: evaluation, optimiser steps.
class NoGradGuard : public GradModeGuard {
 public:
  NoGradGuard() : GradModeGuard(false) {}
};

namespace autograd {

// One gradient an input, in the order of the inputs; undefined where there is none.
using Gradients = std::vector<Tensor>;

// Which inputs want a gradient; a backward may leave out the others.
class NeedsGrad {
 public:
  explicit NeedsGrad(std::size_t inputs = 0) : bits_(inputs, false) {}
  bool operator[](int input) const { return bits_[static_cast<std::size_t>(input)]; }
  void set(int input) { bits_[static_cast<std::size_t>(input)] = true; }

 private:
  std::vector<bool> bits_;
};

// A tensor kept for the backward pass, without its history. get() throws Error if an in-place operation has
// changed the data since.
class SavedTensor {
 public:
  SavedTensor() = default;
  explicit SavedTensor(const Tensor& tensor);
  Tensor get() const;

 private:
  Tensor tensor_;
  std::uint64_t version_ = 0;
};

inline SavedTensor save(const Tensor& tensor) { return SavedTensor(tensor); }

// A recorded operation.
class Node {
 public:
  Node(const char* op_name, std::span<const Tensor> inputs);
  virtual ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Gradients of the inputs from those of the outputs (every one defined).
  virtual Gradients backward(std::span<const Tensor> grad_outputs, const NeedsGrad& needs) = 0;
  // Drops what was saved; backward may not be called again.
  virtual void release() = 0;

  struct TensorInfo {
    Shape shape;
    DType dtype = DType::f32;
    Device device;
  };
  struct Edge {
    std::shared_ptr<Node> node;  // null: this input wants no gradient
    int output_index = 0;        // which of node's outputs the input is
    TensorInfo input;
  };
  using Hook = std::function<Tensor(const Tensor&)>;

  const char* op;
  std::uint64_t sequence;  // order of creation
  std::vector<Edge> edges;
  std::vector<TensorInfo> outputs;
  std::vector<std::pair<int, Hook>> hooks;  // (output, hook)
  NeedsGrad needs;
  bool released = false;
};

// Would an op on these inputs be recorded now?
bool should_record(std::span<const Tensor> inputs);

namespace detail {

template <class Backward>
class FunctionNode : public Node {
 public:
  FunctionNode(const char* op_name, std::span<const Tensor> inputs, Backward function)
      : Node(op_name, inputs), function_(std::make_unique<Backward>(std::move(function))) {}
  Gradients backward(std::span<const Tensor> grad_outputs, const NeedsGrad& wanted) override {
    if constexpr (std::is_invocable_v<Backward&, const Tensor&, const NeedsGrad&>) {
      return (*function_)(grad_outputs[0], wanted);
    } else {
      return (*function_)(grad_outputs, wanted);
    }
  }
  void release() override { function_.reset(); }

 private:
  std::unique_ptr<Backward> function_;
};

void set_history(std::span<Tensor> outputs, std::shared_ptr<Node> node);
void set_inplace_history(Tensor& self, std::shared_ptr<Node> node);

}  // namespace detail

// Makes `output` a result of `inputs`: backward(grad_output, needs) returns one gradient an input, each of
// the input's shape and dtype. Does nothing when recording is off or no input requires a gradient. Undefined
// inputs are allowed.
template <class Backward>
Tensor record(const char* op, Tensor output, std::span<const Tensor> inputs, Backward backward) {
  if (should_record(inputs)) {
    detail::set_history(std::span(&output, 1),
                        std::make_shared<detail::FunctionNode<Backward>>(op, inputs, std::move(backward)));
  }
  return output;
}
template <class Backward>
Tensor record(const char* op, Tensor output, std::initializer_list<Tensor> inputs, Backward backward) {
  return record(op, std::move(output), std::span(inputs.begin(), inputs.size()), std::move(backward));
}

// The same for several outputs: backward(span of grad_outputs, needs).
template <class Backward>
void record(const char* op, std::span<Tensor> outputs, std::span<const Tensor> inputs, Backward backward) {
  if (should_record(inputs)) {
    detail::set_history(outputs,
                        std::make_shared<detail::FunctionNode<Backward>>(op, inputs, std::move(backward)));
  }
}

// To be called before an in-place write to `self`: throws Error where the write would break differentiation
// (a leaf that requires a gradient; a view, when a gradient would have to flow through it).
void check_inplace(const char* op, const Tensor& self, std::span<const Tensor> others = {});

// To be called after the write: bumps the version and, where gradients flow, makes `self` the result of
// inputs[0] = its own old value and the further inputs.
template <class Backward>
void record_inplace(const char* op, Tensor& self, std::initializer_list<Tensor> others, Backward backward) {
  self.bump_version();
  std::vector<Tensor> inputs{self};
  inputs.insert(inputs.end(), others.begin(), others.end());
  if (should_record(inputs)) {
    detail::set_inplace_history(self, std::make_shared<detail::FunctionNode<Backward>>(
                                          op, std::span<const Tensor>(inputs), std::move(backward)));
  }
}

// Gradients of `outputs` weighted by `grad_outputs` (undefined: ones, for outputs of one element), added to
// the grad() of every leaf.
void backward(std::span<const Tensor> outputs, std::span<const Tensor> grad_outputs,
              bool retain_graph = false);

// The same, but returns the gradients of `inputs` (leaves or not) and leaves every grad() as it is. An input
// that the outputs do not depend on gets an undefined tensor.
std::vector<Tensor> grad(std::span<const Tensor> outputs, std::span<const Tensor> inputs,
                         std::span<const Tensor> grad_outputs = {}, bool retain_graph = false);

// Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): function(inputs) without keeping what its
// backward needs; the function is run again, with the same random numbers and in the same Autocast state,
// when the gradient arrives. Gradients also reach the parameters that the function uses.
Tensor checkpoint(std::function<Tensor(std::span<const Tensor>)> function, std::vector<Tensor> inputs);

}  // namespace autograd
}  // namespace ergon
