#include <cmath>
#include <type_traits>

#include "core/error.h"
#include "kernels/cpu/elementwise_loop.h"

namespace ergon::kernels::cpu {
namespace {

template <class S>
void ternary_block(int code, const std::array<S*, kMaxOperands>& blocks, std::int64_t n) {
  using T = compute_t<S>;
  const auto op = static_cast<TernaryOp>(code);
  if (op == TernaryOp::where) return loop_blocks<3>(blocks, n, [](T a, T b, T c) { return a != 0 ? b : c; });
  if constexpr (std::is_floating_point_v<T>) {
    switch (op) {
      case TernaryOp::div_grad:
        return loop_blocks<3>(blocks, n,
                              [](T g, T quotient, T denominator) { return -g * quotient / denominator; });
      case TernaryOp::pow_grad:
        return loop_blocks<3>(
            blocks, n, [](T g, T base, T exponent) { return g * exponent * std::pow(base, exponent - 1); });
      case TernaryOp::maximum_grad:
        return loop_blocks<3>(blocks, n,
                              [](T g, T b, T c) { return b < c ? T(0) : (b == c ? g * T(0.5) : g); });
      case TernaryOp::minimum_grad:
        return loop_blocks<3>(blocks, n,
                              [](T g, T b, T c) { return b > c ? T(0) : (b == c ? g * T(0.5) : g); });
      default:
        break;
    }
  }
}

}  // namespace

void ternary(TernaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
             const Operand& b, const Operand& c) {
  const Operand operands[] = {y, a, b, c};
  dispatch_blocks(compute, operands, [&](auto tag) {
    using S = typename decltype(tag)::type;
    for_each_block<S>(shape, operands, ternary_block<S>, static_cast<int>(op));
  });
}

}  // namespace ergon::kernels::cpu
