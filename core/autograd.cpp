#include "core/autograd.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <queue>
#include <unordered_map>
#include <utility>

#include "core/autocast.h"
#include "core/copy.h"
#include "core/op_scope.h"
#include "core/tensor_impl.h"

namespace ergon {
namespace {

thread_local bool grad_mode = true;

}  // namespace

bool grad_enabled() { return grad_mode; }
GradModeGuard::GradModeGuard(bool enabled) : previous_(grad_mode) { grad_mode = enabled; }
GradModeGuard::~GradModeGuard() { grad_mode = previous_; }

namespace autograd {
namespace {

std::uint64_t next_sequence() {
  static std::atomic<std::uint64_t> counter = 0;
  return counter.fetch_add(1, std::memory_order_relaxed);
}

// Does nobody else hold the tensor or its storage?
bool is_sole_owner(const Tensor& tensor) {
  return tensor.impl().use_count() == 1 && tensor.impl()->storage.use_count() == 1;
}

// into += gradient, reusing into's memory where nobody else can see it.
void add_gradient(Tensor& into, Tensor gradient) {
  if (!into.defined()) {
    into = std::move(gradient);
    return;
  }
  if (!is_sole_owner(into) || !into.is_contiguous()) {
    if (is_sole_owner(gradient) && gradient.is_contiguous()) {
      std::swap(into, gradient);
    } else {
      into = into.clone();
    }
  }
  ergon::detail::accumulate(into, gradient);
}

// The end of the graph at a leaf: adds to its grad().
class AccumulateGrad : public Node {
 public:
  explicit AccumulateGrad(const Tensor& leaf) : Node("accumulate_grad", {}), leaf_(leaf.impl()) {
    sequence = std::numeric_limits<std::uint64_t>::max();  // as soon as it is ready, so that hooks run early
    outputs.push_back({leaf.shape(), leaf.dtype(), leaf.device()});
  }
  Gradients backward(std::span<const Tensor> /*grad_outputs*/, const NeedsGrad& /*wanted*/) override {
    return {};
  }
  void release() override {}

  void accumulate(Tensor gradient) {
    const std::shared_ptr<TensorImpl> impl = leaf_.lock();
    if (!impl) return;
    Tensor& grad = impl->autograd_meta().grad;
    if (!grad.defined() && !(is_sole_owner(gradient) && gradient.is_contiguous()))
      gradient = gradient.clone();
    if (grad.defined()) {
      ergon::detail::accumulate(grad, gradient);  // in place: others may hold it, as they may in PyTorch
      grad.bump_version();
    } else {
      grad = std::move(gradient);
    }
    for (const auto& hook : ready_hooks) hook(Tensor(impl));
  }

  std::vector<std::function<void(const Tensor&)>> ready_hooks;

 private:
  std::weak_ptr<TensorImpl> leaf_;
};

// The node that a gradient of `tensor` goes to; null if it wants none.
std::pair<std::shared_ptr<Node>, int> gradient_target(const Tensor& tensor) {
  if (!tensor.requires_grad()) return {nullptr, 0};
  AutogradMeta& meta = *tensor.impl()->autograd;
  if (meta.grad_fn) return {meta.grad_fn, meta.output_index};
  if (!meta.accumulate_grad) meta.accumulate_grad = std::make_shared<AccumulateGrad>(tensor);
  return {meta.accumulate_grad, 0};
}

// One run backwards.
class Engine {
 public:
  // accumulate_leaves: add to the grad() of leaves; otherwise only captured gradients are kept.
  Engine(bool retain_graph, bool accumulate_leaves)
      : retain_graph_(retain_graph), accumulate_leaves_(accumulate_leaves) {}

  void capture(const Tensor& input, Tensor* result) {
    const auto [node, index] = gradient_target(input);
    ERGON_CHECK(node != nullptr, "[grad] an input of shape {} does not require a gradient", input.shape());
    captures_[node.get()].emplace_back(index, result);
  }

  void run(std::span<const Tensor> outputs, std::span<const Tensor> grad_outputs) {
    NoGradGuard no_grad;
    const autocast::StateGuard no_autocast(autocast::State{});  // dtypes are the forward's
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const auto [node, index] = gradient_target(outputs[i]);
      ERGON_CHECK(node != nullptr, "[backward] output {} of shape {} does not require a gradient", i,
                  outputs[i].shape());
      roots_.push_back(node);
    }
    count_dependencies();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      deliver(roots_[i], gradient_target(outputs[i]).second,
              seed(outputs[i], i < grad_outputs.size() ? grad_outputs[i] : Tensor()));
    }
    for (const std::shared_ptr<Node>& root : roots_) {
      if (pending_.at(root.get()).dependencies == 0) push(root);
    }
    while (!ready_.empty()) {
      const std::shared_ptr<Node> node = ready_.top();
      ready_.pop();
      execute(node);
    }
  }

 private:
  struct Pending {
    int dependencies = 0;
    bool queued = false;
    bool leads_to_capture = false;
    std::vector<Tensor> gradients;  // one an output, added up so far
  };
  struct CreatedEarlier {
    bool operator()(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) const {
      return a->sequence < b->sequence;
    }
  };

  static Tensor seed(const Tensor& output, const Tensor& grad_output) {
    if (!grad_output.defined()) {
      ERGON_CHECK(output.numel() == 1,
                  "[backward] an output of shape {} needs a gradient: only one element goes without",
                  output.shape());
      return ones(output.shape(), output.options());
    }
    ERGON_CHECK(grad_output.shape() == output.shape() && grad_output.dtype() == output.dtype(),
                "[backward] gradient {} {} for an output {} {}: shape and dtype must be equal",
                grad_output.shape(), name_of(grad_output.dtype()), output.shape(), name_of(output.dtype()));
    ERGON_CHECK(grad_output.device() == output.device(),
                "[backward] a gradient on {} for an output on {}: expected one device",
                to_string(grad_output.device()), to_string(output.device()));
    return grad_output.detach();
  }

  void count_dependencies() {
    std::vector<Node*> stack;
    std::vector<Node*> order;
    const auto visit = [&](Node* node) {
      const auto [entry, is_new] = pending_.try_emplace(node);
      if (is_new) {
        entry->second.gradients.resize(node->outputs.size());
        stack.push_back(node);
      }
      return entry;
    };
    for (const std::shared_ptr<Node>& root : roots_) visit(root.get());
    while (!stack.empty()) {
      Node* node = stack.back();
      stack.pop_back();
      order.push_back(node);
      for (const Node::Edge& edge : node->edges) {
        if (edge.node) ++visit(edge.node.get())->second.dependencies;
      }
    }
    if (accumulate_leaves_) return;
    // Later nodes depend on earlier ones only: in order of creation, inputs come first.
    std::sort(order.begin(), order.end(), [](Node* a, Node* b) {
      const bool a_is_leaf = a->edges.empty(), b_is_leaf = b->edges.empty();
      return a_is_leaf != b_is_leaf ? a_is_leaf : a->sequence < b->sequence;
    });
    for (Node* node : order) {
      bool leads = captures_.contains(node);
      for (const Node::Edge& edge : node->edges)
        leads |= edge.node && pending_.at(edge.node.get()).leads_to_capture;
      pending_.at(node).leads_to_capture = leads;
    }
  }

  void push(const std::shared_ptr<Node>& node) {
    Pending& pending = pending_.at(node.get());
    if (!std::exchange(pending.queued, true)) ready_.push(node);
  }

  void deliver(const std::shared_ptr<Node>& node, int output_index, Tensor gradient) {
    add_gradient(pending_.at(node.get()).gradients[static_cast<std::size_t>(output_index)],
                 std::move(gradient));
  }

  void execute(const std::shared_ptr<Node>& node) {
    Pending& pending = pending_.at(node.get());
    std::vector<Tensor> grad_outputs = std::move(pending.gradients);
    for (const auto& [output, hook] : node->hooks) {
      Tensor& gradient = grad_outputs[static_cast<std::size_t>(output)];
      if (!gradient.defined()) continue;
      const Tensor replaced = hook(gradient);
      if (!replaced.defined()) continue;
      ERGON_CHECK(replaced.shape() == gradient.shape() && replaced.dtype() == gradient.dtype(),
                  "[{}] a gradient hook returned {} {} for {} {}", node->op, replaced.shape(),
                  name_of(replaced.dtype()), gradient.shape(), name_of(gradient.dtype()));
      gradient = replaced;
    }
    if (const auto found = captures_.find(node.get()); found != captures_.end()) {
      for (const auto& [output, result] : found->second)
        *result = grad_outputs[static_cast<std::size_t>(output)];
    }
    const bool any_defined =
        std::any_of(grad_outputs.begin(), grad_outputs.end(), [](const Tensor& g) { return g.defined(); });
    if (auto* leaf = dynamic_cast<AccumulateGrad*>(node.get())) {
      if (accumulate_leaves_ && any_defined) leaf->accumulate(std::move(grad_outputs[0]));
      return;
    }
    Gradients gradients(node->edges.size());
    if (any_defined && (accumulate_leaves_ || pending.leads_to_capture)) {
      gradients = call(*node, grad_outputs);
    }
    grad_outputs.clear();
    for (std::size_t i = 0; i < node->edges.size(); ++i) {
      const Node::Edge& edge = node->edges[i];
      if (!edge.node) continue;
      if (gradients[i].defined()) {
        check_gradient(*node, i, gradients[i]);
        deliver(edge.node, edge.output_index, std::move(gradients[i]));
      }
      if (--pending_.at(edge.node.get()).dependencies == 0) push(edge.node);
    }
  }

  Gradients call(Node& node, std::vector<Tensor>& grad_outputs) {
    ERGON_CHECK(
        !node.released,
        "[{}] backward a second time through a graph that has been freed: pass retain_graph to the first",
        node.op);
    for (std::size_t i = 0; i < grad_outputs.size(); ++i) {
      if (!grad_outputs[i].defined()) {
        const Node::TensorInfo& info = node.outputs[i];
        grad_outputs[i] = zeros(info.shape, {info.dtype, info.device});
      }
    }
    OpScope scope(node.op);
    Gradients gradients = node.backward(grad_outputs, node.needs);
    ERGON_CHECK(gradients.size() == node.edges.size(), "[{}] backward returned {} gradients for {} inputs",
                node.op, gradients.size(), node.edges.size());
    if (!retain_graph_) {
      node.release();
      node.released = true;
    }
    return gradients;
  }

  static void check_gradient(const Node& node, std::size_t input, const Tensor& gradient) {
    const Node::TensorInfo& info = node.edges[input].input;
    ERGON_CHECK(gradient.shape() == info.shape && gradient.dtype() == info.dtype,
                "[{}] backward returned a gradient {} {} for input {}, which is {} {}", node.op,
                gradient.shape(), name_of(gradient.dtype()), input, info.shape, name_of(info.dtype));
    ERGON_CHECK(gradient.device() == info.device,
                "[{}] backward returned a gradient on {} for input {}, which is on {}", node.op,
                to_string(gradient.device()), input, to_string(info.device));
  }

  bool retain_graph_;
  bool accumulate_leaves_;
  std::vector<std::shared_ptr<Node>> roots_;
  std::unordered_map<Node*, Pending> pending_;
  std::unordered_map<Node*, std::vector<std::pair<int, Tensor*>>> captures_;
  std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, CreatedEarlier> ready_;
};

}  // namespace

SavedTensor::SavedTensor(const Tensor& tensor) {
  if (!tensor.defined()) return;
  tensor_ = tensor.detach();
  version_ = tensor.version();
}

Tensor SavedTensor::get() const {
  ERGON_CHECK(!tensor_.defined() || tensor_.version() == version_,
              "a tensor of shape {} that is needed for the gradient was changed in place: its version is {}, "
              "expected {}",
              tensor_.shape(), tensor_.version(), version_);
  return tensor_;
}

Node::Node(const char* op_name, std::span<const Tensor> inputs)
    : op(op_name), sequence(next_sequence()), needs(inputs.size()) {
  edges.reserve(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Edge& edge = edges.emplace_back();
    if (!inputs[i].defined()) continue;
    edge.input = {inputs[i].shape(), inputs[i].dtype(), inputs[i].device()};
    std::tie(edge.node, edge.output_index) = gradient_target(inputs[i]);
    if (!edge.node) continue;
    needs.set(static_cast<int>(i));
    const TensorImpl& impl = *inputs[i].impl();
    ERGON_CHECK(!impl.is_view || inputs[i].is_leaf() || impl.view_version == inputs[i].version(),
                "[{}] input {} is a view, and the tensor it looks at has been changed in place since: make "
                "the view again",
                op, i);
  }
}

// Long chains are taken apart in a loop: recursion would overflow the stack.
Node::~Node() {
  thread_local std::vector<std::shared_ptr<Node>> doomed;
  thread_local bool draining = false;
  for (Edge& edge : edges) {
    if (edge.node) doomed.push_back(std::move(edge.node));
  }
  if (draining) return;
  draining = true;
  while (!doomed.empty()) {
    const std::shared_ptr<Node> node = std::move(doomed.back());
    doomed.pop_back();
  }
  draining = false;
}

bool should_record(std::span<const Tensor> inputs) {
  return grad_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) {
           return t.defined() && t.requires_grad();
         });
}

namespace detail {

void set_history(std::span<Tensor> outputs, std::shared_ptr<Node> node) {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    node->outputs.push_back({outputs[i].shape(), outputs[i].dtype(), outputs[i].device()});
    AutogradMeta& meta = outputs[i].impl()->autograd_meta();
    meta.grad_fn = node;
    meta.output_index = static_cast<int>(i);
  }
}

void set_inplace_history(Tensor& self, std::shared_ptr<Node> node) {
  set_history(std::span(&self, 1), std::move(node));
}

}  // namespace detail

void check_inplace(const char* op, const Tensor& self, std::span<const Tensor> others) {
  if (!grad_enabled()) return;
  ERGON_CHECK(
      !(self.requires_grad() && self.is_leaf()),
      "[{}] a leaf of shape {} that requires a gradient cannot be changed in place outside NoGradGuard", op,
      self.shape());
  ERGON_CHECK(
      !self.impl()->is_view || !(self.requires_grad() || should_record(others)),
      "[{}] in place on a view of shape {} that a gradient would flow through: use cat, stack or clone", op,
      self.shape());
}

void backward(std::span<const Tensor> outputs, std::span<const Tensor> grad_outputs, bool retain_graph) {
  Engine(retain_graph, true).run(outputs, grad_outputs);
}

std::vector<Tensor> grad(std::span<const Tensor> outputs, std::span<const Tensor> inputs,
                         std::span<const Tensor> grad_outputs, bool retain_graph) {
  std::vector<Tensor> results(inputs.size());
  Engine engine(retain_graph, false);
  for (std::size_t i = 0; i < inputs.size(); ++i) engine.capture(inputs[i], &results[i]);
  engine.run(outputs, grad_outputs);
  return results;
}

Tensor checkpoint(std::function<Tensor(std::span<const Tensor>)> function, std::vector<Tensor> inputs) {
  const Generator generator = default_generator();
  Tensor output;
  {
    NoGradGuard no_grad;
    output = function(inputs);
  }
  if (!grad_enabled()) return output;
  if (output.impl().use_count() > 1) output = output.detach();  // the function may have returned an input
  std::vector<SavedTensor> saved;
  for (const Tensor& input : inputs) saved.push_back(save(input));
  auto backward = [function = std::move(function), saved = std::move(saved), generator,
                   precision = autocast::state()](const Tensor& grad_output, const NeedsGrad& needs) {
    std::vector<Tensor> detached;
    for (std::size_t i = 0; i < saved.size(); ++i) {
      detached.push_back(saved[i].get());
      if (detached[i].defined() && needs[static_cast<int>(i)]) {
        detached[i] = detached[i].detach();
        detached[i].set_requires_grad(true);
      }
    }
    Tensor recomputed;
    {
      GradModeGuard with_grad(true);
      const autocast::StateGuard with_autocast(precision);
      const Generator current = std::exchange(default_generator(), generator);
      recomputed = function(detached);
      default_generator() = current;
    }
    Gradients gradients(saved.size());
    if (!recomputed.requires_grad()) return gradients;
    autograd::backward(std::span(&recomputed, 1), std::span(&grad_output, 1));
    for (std::size_t i = 0; i < saved.size(); ++i) {
      if (detached[i].defined()) gradients[i] = detached[i].grad();
    }
    return gradients;
  };
  // Recorded whether or not an input requires a gradient: the parameters inside may.
  detail::set_history(std::span(&output, 1), std::make_shared<detail::FunctionNode<decltype(backward)>>(
                                                 "checkpoint", inputs, std::move(backward)));
  return output;
}

}  // namespace autograd

bool Tensor::requires_grad() const {
  const auto* meta = impl_ ? impl_->autograd.get() : nullptr;
  return meta != nullptr && (meta->requires_grad || meta->grad_fn != nullptr);
}

bool Tensor::is_leaf() const { return !impl_ || !impl_->autograd || !impl_->autograd->grad_fn; }

Tensor& Tensor::set_requires_grad(bool requires_grad) {
  ERGON_CHECK(is_leaf(), "[set_requires_grad] the tensor is the result of an operation: expected a leaf");
  ERGON_CHECK(!requires_grad || is_floating_point(dtype()),
              "[set_requires_grad] dtype {}: expected floating point", name_of(dtype()));
  impl_->autograd_meta().requires_grad = requires_grad;
  return *this;
}

Tensor Tensor::grad() const { return impl_ && impl_->autograd ? impl_->autograd->grad : Tensor(); }

void Tensor::set_grad(Tensor grad) {
  ERGON_CHECK(defined(), "[set_grad] the tensor is undefined");
  ERGON_CHECK(!grad.defined() || (grad.shape() == shape() && grad.dtype() == dtype()),
              "[set_grad] a gradient {} {} for a tensor {} {}: shape and dtype must be equal", grad.shape(),
              name_of(grad.dtype()), shape(), name_of(dtype()));
  ERGON_CHECK(!grad.defined() || grad.device() == device(),
              "[set_grad] a gradient on {} for a tensor on {}: expected one device", to_string(grad.device()),
              to_string(device()));
  if (grad.defined() || impl_->autograd) impl_->autograd_meta().grad = std::move(grad);
}

void Tensor::backward(const Tensor& gradient, bool retain_graph) const {
  autograd::backward(std::span(this, 1), std::span(&gradient, 1), retain_graph);
}

void Tensor::register_hook(std::function<Tensor(const Tensor&)> hook) const {
  const auto [node, index] = autograd::gradient_target(*this);
  ERGON_CHECK(node != nullptr, "[register_hook] the tensor does not require a gradient");
  node->hooks.emplace_back(index, std::move(hook));
}

void Tensor::register_post_accumulate_grad_hook(std::function<void(const Tensor&)> hook) const {
  ERGON_CHECK(requires_grad() && is_leaf(),
              "[register_post_accumulate_grad_hook] expected a leaf that requires a gradient");
  const auto node = autograd::gradient_target(*this).first;
  static_cast<autograd::AccumulateGrad&>(*node).ready_hooks.push_back(std::move(hook));
}

}  // namespace ergon
