#pragma once

// Mixed precision by scope (Micikevicius et al. 2018, arXiv 1710.03740): parameters stay in fp32, and in the
// scope every op takes its operands in the dtype that suits it.
//
//   Tensor loss;
//   {
//     const Autocast guard(DType::bf16);
//     loss = model.loss(tokens, targets);
//   }
//   loss.backward();  // gradients of fp32 parameters are fp32; products run in bf16 here too
//
// Ops open with autocast::cast, which knows their class from the table below:
//
//   Tensor linear(const Tensor& x_in, const Tensor& weight_in) {
//     const auto [x, weight] = autocast::cast("linear", x_in, weight_in);
//
// In place, an op always keeps the dtype of what it writes to. Backward functions run as if outside every
// scope, on the dtypes that the forward has chosen. docs/numerics.md says what is computed in which precision
// and why.

#include <array>
#include <concepts>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/tensor.h"

namespace ergon {

// What becomes of an op's floating-point operands in a scope of dtype D, on a device that the scope is for.
// f64 and integers stay as they are.
enum class OpClass : std::uint8_t {
  lower,   // D: products, where tensor cores gain and fp32 accumulation keeps what matters
  fp32,    // f32 for bf16 and f16, result included: where rounding or the range would hurt
  widest,  // the widest dtype among the operands: the rest; one operand stays as it is
};

namespace autocast {

struct OpEntry {
  std::string_view op;
  OpClass op_class;
};

// Ops that are not listed are `widest`. Norms (their statistics) and cross_entropy are too: they read any
// dtype and compute in fp32, so that a cast before them would only cost its traffic.
inline constexpr auto kOps = std::to_array<OpEntry>({
    {"matmul", OpClass::lower},
    {"linear", OpClass::lower},
    {"conv2d", OpClass::lower},
    {"scaled_dot_product_attention", OpClass::lower},
    {"scaled_dot_product_attention_varlen", OpClass::lower},
    {"linear_cross_entropy", OpClass::lower},  // its products; logits, loss and sums of gradients are fp32
    {"softmax", OpClass::fp32},
    {"log_softmax", OpClass::fp32},
    {"exp", OpClass::fp32},
    {"log", OpClass::fp32},
    {"pow", OpClass::fp32},
    {"square", OpClass::fp32},
    {"rsqrt", OpClass::fp32},
    {"sum", OpClass::fp32},
    {"mean", OpClass::fp32},
});

// Gives an op of one's own its class. Throws Error if the name has another one already.
void register_op(std::string op, OpClass op_class);
OpClass class_of(std::string_view op);

// A scope's dtype for each DeviceType; none: no scope is open for it.
using State = std::array<std::optional<DType>, 2>;

// Of this thread.
const State& state();

// The dtype in which `op` takes `operand`, but for what `widest` would make of several; its own outside of
// scopes.
DType dtype_for(std::string_view op, const Tensor& operand);

namespace detail {
bool is_active();
void cast(std::string_view op, std::span<Tensor> operands);
}  // namespace detail

// The operands (undefined ones too) as `op` takes them, differentiable: a gradient comes back in the dtype of
// what was given. bf16 and f16 copies of weights (leaves that require a gradient) are kept until the
// thread's outermost scope ends or the weight changes, so that the micro-batches of a step cast them once.
template <std::same_as<Tensor>... T>
std::array<Tensor, sizeof...(T)> cast(std::string_view op, const T&... operands) {
  std::array<Tensor, sizeof...(T)> result{operands...};
  if (detail::is_active()) detail::cast(op, result);
  return result;
}

// Sets this thread's state for a scope.
class StateGuard {
 public:
  explicit StateGuard(const State& state);
  ~StateGuard();
  StateGuard(const StateGuard&) = delete;
  StateGuard& operator=(const StateGuard&) = delete;

 private:
  State previous_;
};

}  // namespace autocast

// Mixed precision in this scope, on this thread: DType::bf16, f16 or f32, else Error. Scopes nest, and f32
// switches a scope around it off: what it has left in half precision is raised to f32 where the class is
// `lower`.
class Autocast {
 public:
  explicit Autocast(DType dtype);                 // on every device
  Autocast(DType dtype, DeviceType device_type);  // on these devices alone

 private:
  autocast::StateGuard guard_;
};

}  // namespace ergon
