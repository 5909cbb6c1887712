#pragma once

// The operations of kernels/elementwise.h on single values, as functors whose operation is fixed when they
// are compiled (Fixed<op>) or chosen by the launch (Chosen<Op>).

#include <type_traits>
#include <utility>

#include "kernels/cuda/common/activations.cuh"
#include "kernels/elementwise.h"

namespace ergon::kernels::cuda {

template <UnaryOp op, class T>
__device__ __forceinline__ T apply(T x) {
  if constexpr (op == UnaryOp::neg) return -x;
  if constexpr (op == UnaryOp::abs) return x < T(0) ? -x : x + T(0);  // -0 gives 0
  if constexpr (op == UnaryOp::square) return x * x;
  if constexpr (std::is_floating_point_v<T>) {
    if constexpr (op == UnaryOp::exp) return exp(x);
    if constexpr (op == UnaryOp::log) return log(x);
    if constexpr (op == UnaryOp::sqrt) return sqrt(x);
    if constexpr (op == UnaryOp::rsqrt) return T(1) / sqrt(x);
    if constexpr (op == UnaryOp::sin) return sin(x);
    if constexpr (op == UnaryOp::cos) return cos(x);
    if constexpr (op == UnaryOp::tanh) return tanh(x);
    if constexpr (op == UnaryOp::sigmoid) return device::sigmoid(x);
    if constexpr (op == UnaryOp::relu) return device::relu(x);
    if constexpr (op == UnaryOp::gelu_erf) return device::gelu_erf(x);
    if constexpr (op == UnaryOp::gelu_tanh) return device::gelu_tanh(x);
    if constexpr (op == UnaryOp::silu) return device::silu(x);
  }
  return x;  // unreachable: the launcher has checked that T has the operation
}

template <BinaryOp op, class T>
__device__ __forceinline__ T apply(T a, T b) {
  if constexpr (op == BinaryOp::add) return a + b;
  if constexpr (op == BinaryOp::sub) return a - b;
  if constexpr (op == BinaryOp::mul) return a * b;
  if constexpr (op == BinaryOp::maximum) return a > b || a != a ? a : b;
  if constexpr (op == BinaryOp::minimum) return a < b || a != a ? a : b;
  if constexpr (op == BinaryOp::eq) return T(a == b ? 1 : 0);
  if constexpr (op == BinaryOp::ne) return T(a != b ? 1 : 0);
  if constexpr (op == BinaryOp::lt) return T(a < b ? 1 : 0);
  if constexpr (op == BinaryOp::le) return T(a <= b ? 1 : 0);
  if constexpr (op == BinaryOp::gt) return T(a > b ? 1 : 0);
  if constexpr (op == BinaryOp::ge) return T(a >= b ? 1 : 0);
  if constexpr (std::is_floating_point_v<T>) {
    if constexpr (op == BinaryOp::div) return a / b;
    if constexpr (op == BinaryOp::pow) return pow(a, b);
    if constexpr (op == BinaryOp::abs_grad) return b > 0 ? a : (b < 0 ? -a : T(0));
    if constexpr (op == BinaryOp::square_grad) return a * (T(2) * b);
    if constexpr (op == BinaryOp::sqrt_grad) return a / (T(2) * b);
    if constexpr (op == BinaryOp::rsqrt_grad) return T(-0.5) * a * (b * b * b);
    if constexpr (op == BinaryOp::sin_grad) return a * cos(b);
    if constexpr (op == BinaryOp::cos_grad) return -a * sin(b);
    if constexpr (op == BinaryOp::tanh_grad) return a * (T(1) - b * b);
    if constexpr (op == BinaryOp::sigmoid_grad) return a * (b * (T(1) - b));
    if constexpr (op == BinaryOp::relu_grad) return b > 0 ? a : T(0);
    if constexpr (op == BinaryOp::gelu_erf_grad) return a * device::gelu_erf_grad(b);
    if constexpr (op == BinaryOp::gelu_tanh_grad) return a * device::gelu_tanh_grad(b);
    if constexpr (op == BinaryOp::silu_grad) return a * device::silu_grad(b);
  }
  return a;
}

template <TernaryOp op, class T>
__device__ __forceinline__ T apply(T a, T b, T c) {
  if constexpr (op == TernaryOp::where) return a != T(0) ? b : c;
  if constexpr (std::is_floating_point_v<T>) {
    if constexpr (op == TernaryOp::div_grad) return -a * b / c;
    if constexpr (op == TernaryOp::pow_grad) return a * c * pow(b, c - T(1));
    if constexpr (op == TernaryOp::maximum_grad) return b < c ? T(0) : (b == c ? a * T(0.5) : a);
    if constexpr (op == TernaryOp::minimum_grad) return b > c ? T(0) : (b == c ? a * T(0.5) : a);
  }
  return b;
}

// The first operation of each list that needs floating point, and the number of operations.
template <class Op>
struct OpList;
template <>
struct OpList<UnaryOp> {
  static constexpr UnaryOp kFirstFloating = UnaryOp::exp;
  static constexpr int kCount = static_cast<int>(UnaryOp::silu) + 1;
};
template <>
struct OpList<BinaryOp> {
  static constexpr BinaryOp kFirstFloating = BinaryOp::div;
  static constexpr int kCount = static_cast<int>(BinaryOp::silu_grad) + 1;
};
template <>
struct OpList<TernaryOp> {
  static constexpr TernaryOp kFirstFloating = TernaryOp::div_grad;
  static constexpr int kCount = static_cast<int>(TernaryOp::minimum_grad) + 1;
};

template <auto op>
struct Fixed {
  template <class... T>
  __device__ __forceinline__ auto operator()(T... values) const {
    return apply<op>(values...);
  }
};

// Calls f(Fixed<op>{}) for a run-time op; on the host and on the device.
template <class Op, class F>
constexpr void with_fixed(Op op, F f) {
  const auto try_all = [&]<int... codes>(std::integer_sequence<int, codes...>) {
    static_cast<void>(((static_cast<int>(op) == codes && (f(Fixed<static_cast<Op>(codes)>{}), true)) || ...));
  };
  try_all(std::make_integer_sequence<int, OpList<Op>::kCount>{});
}

template <class Op>
struct Chosen {
  Op op;
  template <class T, class... Rest>
  __device__ __forceinline__ T operator()(T first, Rest... rest) const {
    T result{};
    with_fixed(op, [&](auto fixed) { result = fixed(first, rest...); });
    return result;
  }
};

}  // namespace ergon::kernels::cuda
