#pragma once

// One product of a batch as the CPU code sees it. T is the type of its sums: float, or double for f64.

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "core/half.h"
#include "kernels/cpu/gemm_element.h"
#include "kernels/gemm.h"

namespace ergon::kernels::cpu::gemm_detail {

using std::int64_t;

template <class Pointer>
struct Matrix {
  Pointer data;
  DType dtype;
  int64_t row, col;  // strides in elements
};

template <class T>
struct Problem {
  int64_t M, N, K;
  Matrix<const void*> a, b;
  Matrix<void*> c;
  void* pre_activation;  // null: none; c's dtype and strides
  const void* residual;  // likewise
  const T* bias;         // (N); null: none
  T alpha, beta;
  Activation activation;
  bool activation_backward;
  bool streams_pre_activation;  // past the caches; whole vectors of it are aligned
};

// Calls f(TypeTag<S>{}) with the type of one of the dtypes that go with T.
template <class T, class F>
void with_type(DType dtype, F&& f) {
  if constexpr (std::is_same_v<T, double>) {
    f(TypeTag<double>{});
  } else {
    if (dtype == DType::f32) return f(TypeTag<float>{});
    if (dtype == DType::bf16) return f(TypeTag<bf16>{});
    f(TypeTag<f16>{});
  }
}

// The same for operands that become elements E.
template <class E, class F>
void with_operand_type(DType dtype, F&& f) {
  if constexpr (kDepth<E> == 1) {
    with_type<E>(dtype, std::forward<F>(f));
  } else {
    f(TypeTag<Source<E>>{});
  }
}

}  // namespace ergon::kernels::cpu::gemm_detail
