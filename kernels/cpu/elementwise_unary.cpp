#include <cmath>
#include <type_traits>

#include "core/error.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/elementwise_loop.h"
#include "kernels/cpu/half_math.h"

namespace ergon::kernels::cpu {
namespace {

template <class S>
void unary_block(int op, const std::array<S*, kMaxOperands>& blocks, std::int64_t n) {
  using T = compute_t<S>;
  switch (static_cast<UnaryOp>(op)) {
    case UnaryOp::neg:
      return loop_blocks<1>(blocks, n, [](T x) { return -x; });
    case UnaryOp::abs:
      return loop_blocks<1>(blocks, n, [](T x) { return std::abs(x); });
    case UnaryOp::square:
      return loop_blocks<1>(blocks, n, [](T x) { return x * x; });
    default:
      break;
  }
  if constexpr (is_half(dtype_of<S>())) {
    using V = Vec<float>;
    switch (static_cast<UnaryOp>(op)) {
      case UnaryOp::exp:
        return loop_blocks<1>(blocks, n, [](V x) { return half_exp(x); });
      case UnaryOp::sigmoid:
        return loop_blocks<1>(blocks, n, [](V x) { return half_sigmoid(x); });
      case UnaryOp::gelu_erf:
        return loop_blocks<1>(blocks, n, [](V x) { return half_gelu_erf(x); });
      case UnaryOp::gelu_tanh:
        return loop_blocks<1>(blocks, n, [](V x) { return half_gelu_tanh(x); });
      case UnaryOp::silu:
        return loop_blocks<1>(blocks, n, [](V x) { return half_silu(x); });
      default:
        break;
    }
  }
  if constexpr (std::is_floating_point_v<T>) {
    switch (static_cast<UnaryOp>(op)) {
      case UnaryOp::exp:
        return loop_blocks<1>(blocks, n, [](T x) { return vexp(x); });
      case UnaryOp::log:
        return loop_blocks<1>(blocks, n, [](T x) { return vlog(x); });
      case UnaryOp::sqrt:
        return loop_blocks<1>(blocks, n, [](T x) { return std::sqrt(x); });
      case UnaryOp::rsqrt:
        return loop_blocks<1>(blocks, n, [](T x) { return T(1) / std::sqrt(x); });
      case UnaryOp::sin:
        return loop_blocks<1>(blocks, n, [](T x) { return std::sin(x); });
      case UnaryOp::cos:
        return loop_blocks<1>(blocks, n, [](T x) { return std::cos(x); });
      case UnaryOp::tanh:
        return loop_blocks<1>(blocks, n, [](T x) { return vtanh(x); });
      case UnaryOp::sigmoid:
        return loop_blocks<1>(blocks, n, [](T x) { return vsigmoid(x); });
      case UnaryOp::relu:
        return loop_blocks<1>(blocks, n, [](T x) { return cpu::relu(x); });
      case UnaryOp::gelu_erf:
        return loop_blocks<1>(blocks, n, [](T x) { return cpu::gelu_erf(x); });
      case UnaryOp::gelu_tanh:
        return loop_blocks<1>(blocks, n, [](T x) { return cpu::gelu_tanh(x); });
      case UnaryOp::silu:
        return loop_blocks<1>(blocks, n, [](T x) { return cpu::silu(x); });
      default:
        break;
    }
  }
}

}  // namespace

void unary(UnaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& x) {
  const Operand operands[] = {y, x};
  dispatch_blocks(compute, operands, [&](auto tag) {
    using S = typename decltype(tag)::type;
    for_each_block<S>(shape, operands, unary_block<S>, static_cast<int>(op));
  });
}

}  // namespace ergon::kernels::cpu
