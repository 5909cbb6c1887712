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
  const T* x = blocks[1];
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

template <class T>
void unary_block(int op, const std::array<T*, kMaxOperands>& blocks, std::int64_t n) {
  switch (static_cast<UnaryOp>(op)) {
    case UnaryOp::neg:
      return loop(blocks, n, [](T x) { return -x; });
    case UnaryOp::abs:
      return loop(blocks, n, [](T x) { return std::abs(x); });
    case UnaryOp::square:
      return loop(blocks, n, [](T x) { return x * x; });
    default:
      break;
  }
  if constexpr (std::is_floating_point_v<T>) {
    switch (static_cast<UnaryOp>(op)) {
      case UnaryOp::exp:
        return loop(blocks, n, [](T x) { return vexp(x); });
      case UnaryOp::log:
        return loop(blocks, n, [](T x) { return vlog(x); });
      case UnaryOp::sqrt:
        return loop(blocks, n, [](T x) { return std::sqrt(x); });
      case UnaryOp::rsqrt:
        return loop(blocks, n, [](T x) { return T(1) / std::sqrt(x); });
      case UnaryOp::sin:
        return loop(blocks, n, [](T x) { return std::sin(x); });
      case UnaryOp::cos:
        return loop(blocks, n, [](T x) { return std::cos(x); });
      case UnaryOp::tanh:
        return loop(blocks, n, [](T x) { return vtanh(x); });
      case UnaryOp::sigmoid:
        return loop(blocks, n, [](T x) { return vsigmoid(x); });
      case UnaryOp::relu:
        return loop(blocks, n, [](T x) { return cpu::relu(x); });
      case UnaryOp::gelu_erf:
        return loop(blocks, n, [](T x) { return cpu::gelu_erf(x); });
      case UnaryOp::gelu_tanh:
        return loop(blocks, n, [](T x) { return cpu::gelu_tanh(x); });
      case UnaryOp::silu:
        return loop(blocks, n, [](T x) { return cpu::silu(x); });
      default:
        break;
    }
  }
}

}  // namespace

void unary(UnaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& x) {
  const Operand operands[] = {y, x};
  const int code = static_cast<int>(op);
  if (compute == DType::f32) return for_each_block<float>(shape, operands, unary_block<float>, code);
  if (compute == DType::f64) return for_each_block<double>(shape, operands, unary_block<double>, code);
  ERGON_INTERNAL_ASSERT(compute == DType::i64 && op <= UnaryOp::square);
  for_each_block<std::int64_t>(shape, operands, unary_block<std::int64_t>, code);
}

}  // namespace ergon::kernels::cpu
