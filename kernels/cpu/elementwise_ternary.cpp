#include <cmath>
#include <type_traits>

#include "core/error.h"
#include "kernels/cpu/elementwise_loop.h"

namespace ergon::kernels::cpu {
namespace {

template <class T, class F>
void loop(const std::array<T*, kMaxOperands>& blocks, std::int64_t n, F f) {
  T* y = blocks[0];
  const T *a = blocks[1], *b = blocks[2], *c = blocks[3];
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i], c[i]);
}

template <class T>
void ternary_block(int code, const std::array<T*, kMaxOperands>& blocks, std::int64_t n) {
  const auto op = static_cast<TernaryOp>(code);
  if (op == TernaryOp::where) return loop(blocks, n, [](T a, T b, T c) { return a != 0 ? b : c; });
  if constexpr (std::is_floating_point_v<T>) {
    switch (op) {
      case TernaryOp::div_grad:
        return loop(blocks, n, [](T g, T quotient, T denominator) { return -g * quotient / denominator; });
      case TernaryOp::pow_grad:
        return loop(blocks, n,
                    [](T g, T base, T exponent) { return g * exponent * std::pow(base, exponent - 1); });
      case TernaryOp::maximum_grad:
        return loop(blocks, n, [](T g, T b, T c) { return b < c ? T(0) : (b == c ? g * T(0.5) : g); });
      case TernaryOp::minimum_grad:
        return loop(blocks, n, [](T g, T b, T c) { return b > c ? T(0) : (b == c ? g * T(0.5) : g); });
      default:
        break;
    }
  }
}

}  // namespace

void ternary(TernaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
             const Operand& b, const Operand& c) {
  const Operand operands[] = {y, a, b, c};
  const int code = static_cast<int>(op);
  if (compute == DType::f32) return for_each_block<float>(shape, operands, ternary_block<float>, code);
  if (compute == DType::f64) return for_each_block<double>(shape, operands, ternary_block<double>, code);
  ERGON_INTERNAL_ASSERT(compute == DType::i64 && op == TernaryOp::where);
  for_each_block<std::int64_t>(shape, operands, ternary_block<std::int64_t>, code);
}

}  // namespace ergon::kernels::cpu
