#include <cmath>
#include <type_traits>

#include "core/error.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/elementwise_loop.h"

namespace ergon::kernels::cpu {
namespace {

template <class T, class F>
void loop(const std::array<T*, kMaxOperands>& blocks, std::int64_t n, F f) {
  T* y = blocks[0];
  const T *a = blocks[1], *b = blocks[2];
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
}

template <class T>
void arithmetic_block(BinaryOp op, const std::array<T*, kMaxOperands>& blocks, std::int64_t n) {
  switch (op) {
    case BinaryOp::add:
      return loop(blocks, n, [](T a, T b) { return a + b; });
    case BinaryOp::sub:
      return loop(blocks, n, [](T a, T b) { return a - b; });
    case BinaryOp::mul:
      return loop(blocks, n, [](T a, T b) { return a * b; });
    case BinaryOp::maximum:
      return loop(blocks, n, [](T a, T b) { return a > b || a != a ? a : b; });
    case BinaryOp::minimum:
      return loop(blocks, n, [](T a, T b) { return a < b || a != a ? a : b; });
    case BinaryOp::eq:
      return loop(blocks, n, [](T a, T b) { return T(a == b ? 1 : 0); });
    case BinaryOp::ne:
      return loop(blocks, n, [](T a, T b) { return T(a != b ? 1 : 0); });
    case BinaryOp::lt:
      return loop(blocks, n, [](T a, T b) { return T(a < b ? 1 : 0); });
    case BinaryOp::le:
      return loop(blocks, n, [](T a, T b) { return T(a <= b ? 1 : 0); });
    case BinaryOp::gt:
      return loop(blocks, n, [](T a, T b) { return T(a > b ? 1 : 0); });
    case BinaryOp::ge:
      return loop(blocks, n, [](T a, T b) { return T(a >= b ? 1 : 0); });
    default:
      break;
  }
}

template <class T>
void floating_block(BinaryOp op, const std::array<T*, kMaxOperands>& blocks, std::int64_t n) {
  switch (op) {
    case BinaryOp::div:
      return loop(blocks, n, [](T a, T b) { return a / b; });
    case BinaryOp::pow:
      return loop(blocks, n, [](T a, T b) { return std::pow(a, b); });
    case BinaryOp::abs_grad:
      return loop(blocks, n, [](T g, T x) { return x > 0 ? g : (x < 0 ? -g : T(0)); });
    case BinaryOp::square_grad:
      return loop(blocks, n, [](T g, T x) { return g * (T(2) * x); });
    case BinaryOp::sqrt_grad:
      return loop(blocks, n, [](T g, T y) { return g / (T(2) * y); });
    case BinaryOp::rsqrt_grad:
      return loop(blocks, n, [](T g, T y) { return T(-0.5) * g * (y * y * y); });
    case BinaryOp::sin_grad:
      return loop(blocks, n, [](T g, T x) { return g * std::cos(x); });
    case BinaryOp::cos_grad:
      return loop(blocks, n, [](T g, T x) { return -g * std::sin(x); });
    case BinaryOp::tanh_grad:
      return loop(blocks, n, [](T g, T y) { return g * (T(1) - y * y); });
    case BinaryOp::sigmoid_grad:
      return loop(blocks, n, [](T g, T y) { return g * (y * (T(1) - y)); });
    case BinaryOp::relu_grad:
      return loop(blocks, n, [](T g, T y) { return y > 0 ? g : T(0); });
    case BinaryOp::gelu_erf_grad:
      return loop(blocks, n, [](T g, T x) { return g * cpu::gelu_erf_grad(x); });
    case BinaryOp::gelu_tanh_grad:
      return loop(blocks, n, [](T g, T x) { return g * cpu::gelu_tanh_grad(x); });
    case BinaryOp::silu_grad:
      return loop(blocks, n, [](T g, T x) { return g * cpu::silu_grad(x); });
    default:
      break;
  }
}

template <class T>
void binary_block(int code, const std::array<T*, kMaxOperands>& blocks, std::int64_t n) {
  const auto op = static_cast<BinaryOp>(code);
  if (op < BinaryOp::div) return arithmetic_block(op, blocks, n);
  if constexpr (std::is_floating_point_v<T>) floating_block(op, blocks, n);
}

}  // namespace

void binary(BinaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
            const Operand& b) {
  const Operand operands[] = {y, a, b};
  const int code = static_cast<int>(op);
  if (compute == DType::f32) return for_each_block<float>(shape, operands, binary_block<float>, code);
  if (compute == DType::f64) return for_each_block<double>(shape, operands, binary_block<double>, code);
  ERGON_INTERNAL_ASSERT(compute == DType::i64 && op < BinaryOp::div);
  for_each_block<std::int64_t>(shape, operands, binary_block<std::int64_t>, code);
}

}  // namespace ergon::kernels::cpu
