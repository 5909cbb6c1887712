#include "core/autocast.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "core/autograd.h"
#include "core/tensor_impl.h"

namespace ergon {
namespace autocast {
namespace {

class Registry {
 public:
  static Registry& get() {
    static Registry registry;
    return registry;
  }
  OpClass find(std::string_view op) const {
    const std::shared_lock lock(mutex_);
    const auto found = classes_.find(op);
    return found == classes_.end() ? OpClass::widest : found->second;
  }
  void add(std::string op, OpClass op_class) {
    const std::unique_lock lock(mutex_);
    const auto [entry, is_new] = classes_.emplace(std::move(op), op_class);
    ERGON_CHECK(entry->second == op_class, "[autocast] op {} is registered with another class already",
                entry->first);
  }

 private:
  Registry() {
    for (const OpEntry& entry : kOps) classes_.emplace(entry.op, entry.op_class);
  }

  mutable std::shared_mutex mutex_;
  std::map<std::string, OpClass, std::less<>> classes_;
};

// Half-precision copies of weights.
class WeightCache {
 public:
  Tensor get(const Tensor& weight, DType dtype) {
    const TensorImpl& impl = *weight.impl();
    Entry& entry = entries_[&impl];
    if (entry.weight.lock() != weight.impl() || entry.storage.lock() != impl.storage
        || entry.version != weight.version() || entry.copy.dtype() != dtype
        || entry.copy.impl()->storage->stream != current_stream(weight.device())) {
      NoGradGuard no_grad;
      entry = {weight.impl(), impl.storage, weight.version(), weight.to(dtype)};
    }
    return entry.copy;
  }
  void clear() { entries_.clear(); }

 private:
  struct Entry {
    std::weak_ptr<TensorImpl> weight;  // an address alone may have been used again
    std::weak_ptr<Storage> storage;
    std::uint64_t version = 0;
    Tensor copy;
  };
  std::unordered_map<const TensorImpl*, Entry> entries_;
};

struct ThreadState {
  State dtypes;
  int depth = 0;  // of open guards
  WeightCache weights;
};
thread_local ThreadState thread_state;

bool is_castable(const Tensor& tensor) {
  return tensor.defined() && is_floating_point(tensor.dtype()) && tensor.dtype() != DType::f64;
}

std::optional<DType> scope_dtype(const Tensor& tensor) {
  return thread_state.dtypes[static_cast<std::size_t>(tensor.device().type)];
}

Tensor convert(const Tensor& tensor, DType dtype) {
  if (tensor.dtype() == dtype) return tensor;
  const bool is_weight = tensor.is_leaf() && tensor.requires_grad();
  if (!is_weight || !is_half(dtype)) return tensor.to(dtype);
  // Every use is a result of its own: one graph may be freed while others use the copy.
  return autograd::record("to", thread_state.weights.get(tensor, dtype).detach(), {tensor},
                          [from = tensor.dtype()](const Tensor& grad_output, const auto&) {
                            return autograd::Gradients{grad_output.to(from)};
                          });
}

State with(DType dtype, std::optional<DeviceType> device_type) {
  ERGON_CHECK(dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32,
              "[autocast] dtype {}: expected bf16, f16 or f32", name_of(dtype));
  State state = thread_state.dtypes;
  for (std::size_t type = 0; type < state.size(); ++type) {
    if (!device_type || static_cast<std::size_t>(*device_type) == type) state[type] = dtype;
  }
  return state;
}

}  // namespace

void register_op(std::string op, OpClass op_class) { Registry::get().add(std::move(op), op_class); }
OpClass class_of(std::string_view op) { return Registry::get().find(op); }

const State& state() { return thread_state.dtypes; }

DType dtype_for(std::string_view op, const Tensor& operand) {
  if (!detail::is_active() || !is_castable(operand) || !scope_dtype(operand)) return operand.dtype();
  switch (class_of(op)) {
    case OpClass::lower:
      return *scope_dtype(operand);
    case OpClass::fp32:
      return DType::f32;
    case OpClass::widest:
      break;
  }
  return operand.dtype();
}

namespace detail {

bool is_active() {
  return std::any_of(thread_state.dtypes.begin(), thread_state.dtypes.end(),
                     [](const auto& dtype) { return dtype.has_value(); });
}

void cast(std::string_view op, std::span<Tensor> operands) {
  if (class_of(op) != OpClass::widest) {
    for (Tensor& operand : operands) {
      if (operand.defined()) operand = convert(operand, dtype_for(op, operand));
    }
    return;
  }
  std::optional<DType> widest;
  const auto takes_part = [](const Tensor& operand) { return is_castable(operand) && scope_dtype(operand); };
  for (const Tensor& operand : operands) {
    if (takes_part(operand)) widest = widest ? promote(*widest, operand.dtype()) : operand.dtype();
  }
  for (Tensor& operand : operands) {
    if (takes_part(operand)) operand = convert(operand, *widest);
  }
}

}  // namespace detail

StateGuard::StateGuard(const State& state) : previous_(std::exchange(thread_state.dtypes, state)) {
  ++thread_state.depth;
}

StateGuard::~StateGuard() {
  thread_state.dtypes = previous_;
  if (--thread_state.depth == 0) thread_state.weights.clear();
}

}  // namespace autocast

Autocast::Autocast(DType dtype) : guard_(autocast::with(dtype, std::nullopt)) {}
Autocast::Autocast(DType dtype, DeviceType device_type) : guard_(autocast::with(dtype, device_type)) {}

}  // namespace ergon
