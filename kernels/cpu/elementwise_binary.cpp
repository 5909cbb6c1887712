#include <cmath>
#include <type_traits>

#include "core/error.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/elementwise_loop.h"
#include "kernels/cpu/half_math.h"

namespace ergon::kernels::cpu {
namespace {

template <class S>
void arithmetic_block(BinaryOp op, const std::array<S*, kMaxOperands>& blocks, std::int64_t n) {
  using T = compute_t<S>;
  switch (op) {
    case BinaryOp::add:
      return loop_blocks<2>(blocks, n, [](auto a, auto b) { return a + b; });
    case BinaryOp::sub:
      return loop_blocks<2>(blocks, n, [](auto a, auto b) { return a - b; });
    case BinaryOp::mul:
      return loop_blocks<2>(blocks, n, [](auto a, auto b) { return a * b; });
    case BinaryOp::maximum:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return a > b || a != a ? a : b; });
    case BinaryOp::minimum:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return a < b || a != a ? a : b; });
    case BinaryOp::eq:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return T(a == b ? 1 : 0); });
    case BinaryOp::ne:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return T(a != b ? 1 : 0); });
    case BinaryOp::lt:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return T(a < b ? 1 : 0); });
    case BinaryOp::le:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return T(a <= b ? 1 : 0); });
    case BinaryOp::gt:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return T(a > b ? 1 : 0); });
    case BinaryOp::ge:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return T(a >= b ? 1 : 0); });
    default:
      break;
  }
}

template <class S>
void floating_block(BinaryOp op, const std::array<S*, kMaxOperands>& blocks, std::int64_t n) {
  using T = compute_t<S>;
  if constexpr (is_half(dtype_of<S>())) {
    using V = Vec<float>;
    switch (op) {
      case BinaryOp::gelu_erf_grad:
        return loop_blocks<2>(blocks, n, [](V g, V x) { return g * half_gelu_erf_grad(x); });
      case BinaryOp::gelu_tanh_grad:
        return loop_blocks<2>(blocks, n, [](V g, V x) { return g * half_gelu_tanh_grad(x); });
      case BinaryOp::silu_grad:
        return loop_blocks<2>(blocks, n, [](V g, V x) { return g * half_silu_grad(x); });
      default:
        break;
    }
  }
  switch (op) {
    case BinaryOp::div:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return a / b; });
    case BinaryOp::pow:
      return loop_blocks<2>(blocks, n, [](T a, T b) { return std::pow(a, b); });
    case BinaryOp::abs_grad:
      return loop_blocks<2>(blocks, n, [](T g, T x) { return x > 0 ? g : (x < 0 ? -g : T(0)); });
    case BinaryOp::square_grad:
      return loop_blocks<2>(blocks, n, [](T g, T x) { return g * (T(2) * x); });
    case BinaryOp::sqrt_grad:
      return loop_blocks<2>(blocks, n, [](T g, T y) { return g / (T(2) * y); });
    case BinaryOp::rsqrt_grad:
      return loop_blocks<2>(blocks, n, [](T g, T y) { return T(-0.5) * g * (y * y * y); });
    case BinaryOp::sin_grad:
      return loop_blocks<2>(blocks, n, [](T g, T x) { return g * std::cos(x); });
    case BinaryOp::cos_grad:
      return loop_blocks<2>(blocks, n, [](T g, T x) { return -g * std::sin(x); });
    case BinaryOp::tanh_grad:
      return loop_blocks<2>(blocks, n, [](T g, T y) { return g * (T(1) - y * y); });
    case BinaryOp::sigmoid_grad:
      return loop_blocks<2>(blocks, n, [](T g, T y) { return g * (y * (T(1) - y)); });
    case BinaryOp::relu_grad:
      return loop_blocks<2>(blocks, n, [](T g, T y) { return y > 0 ? g : T(0); });
    case BinaryOp::gelu_erf_grad:
      return loop_blocks<2>(blocks, n, [](T g, T x) { return g * cpu::gelu_erf_grad(x); });
    case BinaryOp::gelu_tanh_grad:
      return loop_blocks<2>(blocks, n, [](T g, T x) { return g * cpu::gelu_tanh_grad(x); });
    case BinaryOp::silu_grad:
      return loop_blocks<2>(blocks, n, [](T g, T x) { return g * cpu::silu_grad(x); });
    default:
      break;
  }
}

template <class S>
void binary_block(int code, const std::array<S*, kMaxOperands>& blocks, std::int64_t n) {
  using T = compute_t<S>;
  const auto op = static_cast<BinaryOp>(code);
  if (op < BinaryOp::div) return arithmetic_block(op, blocks, n);
  if constexpr (std::is_floating_point_v<T>) floating_block(op, blocks, n);
}

}  // namespace

void binary(BinaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
            const Operand& b) {
  const Operand operands[] = {y, a, b};
  dispatch_blocks(compute, operands, [&](auto tag) {
    using S = typename decltype(tag)::type;
    for_each_block<S>(shape, operands, binary_block<S>, static_cast<int>(op));
  });
}

}  // namespace ergon::kernels::cpu
