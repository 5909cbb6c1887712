#pragma once

// Random products for the tests of the matrix product: operands of any dtype and memory layout.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/half.h"
#include "kernels/gemm.h"

namespace ergon::kernels::test {

inline constexpr DType kNarrow[] = {DType::f32, DType::bf16, DType::f16};
inline constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu_tanh,
                                              Activation::gelu_erf, Activation::silu};

enum class Layout { row_major, column_major, padded, strided, aliased };
inline constexpr Layout kAllLayouts[] = {Layout::row_major, Layout::column_major, Layout::padded,
                                         Layout::strided, Layout::aliased};

inline double roundoff(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-53;
    case DType::bf16:
      return 0x1p-8;
    case DType::f16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

// (outer, inner, rows, cols) of a dtype in a layout, `first` elements past an aligned address. Memory outside
// the elements holds NaN.
class Matrices {
 public:
  Matrices(DType dtype, std::int64_t outer, std::int64_t inner, std::int64_t rows, std::int64_t cols,
           Layout layout = Layout::row_major, std::int64_t first = 1)
      : dtype_(dtype), first_(first) {
    switch (layout) {
      case Layout::row_major:
        row_ = cols, col_ = 1;
        break;
      case Layout::column_major:
        row_ = 1, col_ = rows;
        break;
      case Layout::padded:
        row_ = cols + 3, col_ = 1;
        break;
      case Layout::strided:
        row_ = 2 * cols + 1, col_ = 2;
        break;
      case Layout::aliased:
        row_ = (cols + 1023) / 1024 * 1024, col_ = 1;
        break;
    }
    inner_ = std::max<std::int64_t>(rows, 1) * std::max<std::int64_t>(row_, 1)
             + std::max<std::int64_t>(cols, 1) * col_;
    outer_ = inner * inner_;
    size_ = outer * outer_ + first;
    storage_.resize(static_cast<std::size_t>(size_ * size_of(dtype)));
    poison();
  }

  void set_strides(std::int64_t outer, std::int64_t inner, std::int64_t row, std::int64_t col) {
    outer_ = outer, inner_ = inner, row_ = row, col_ = col;
  }
  void poison() {
    for (std::int64_t i = 0; i < size_; ++i) put(i, std::numeric_limits<double>::quiet_NaN());
  }
  double get(std::int64_t o, std::int64_t n, std::int64_t i, std::int64_t j) const {
    return dispatch_floating(dtype_, "test", [&](auto tag) {
      typename decltype(tag)::type value;
      std::memcpy(static_cast<void*>(&value), storage_.data() + offset(o, n, i, j) * size_of(dtype_),
                  sizeof value);
      return static_cast<double>(value);
    });
  }
  void set(std::int64_t o, std::int64_t n, std::int64_t i, std::int64_t j, double value) {
    put(offset(o, n, i, j), value);
  }
  template <class Pointer>
  GemmOperand<Pointer> operand() const {
    return {const_cast<std::byte*>(storage_.data()) + first_ * size_of(dtype_),
            dtype_,
            row_,
            col_,
            outer_,
            inner_};
  }
  DType dtype() const { return dtype_; }
  const std::vector<std::byte>& storage() const { return storage_; }
  std::vector<std::byte>& storage() { return storage_; }

 private:
  std::int64_t offset(std::int64_t o, std::int64_t n, std::int64_t i, std::int64_t j) const {
    return first_ + o * outer_ + n * inner_ + i * row_ + j * col_;
  }
  void put(std::int64_t index, double value) {
    dispatch_floating(dtype_, "test", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const T typed = static_cast<T>(static_cast<accumulate_t<T>>(value));
      std::memcpy(storage_.data() + index * size_of(dtype_), &typed, sizeof typed);
    });
  }

  DType dtype_;
  std::int64_t first_;
  std::int64_t outer_ = 0, inner_ = 0, row_ = 0, col_ = 0, size_ = 0;
  std::vector<std::byte> storage_;
};

struct Problem {
  std::int64_t M = 1, N = 1, K = 1, outer = 1, inner = 1;
  DType a = DType::f32, b = DType::f32, c = DType::f32, bias = DType::f32;
  Layout layout_a = Layout::row_major, layout_b = Layout::row_major, layout_c = Layout::row_major;
  double alpha = 1, beta = 0;
  bool with_bias = false, with_pre_activation = false;
  Activation activation = Activation::none;
  bool integers = true;  // small whole numbers: every sum is exact
  bool activation_backward = false, with_residual = false, allow_tf32 = false;
  std::int64_t first = 1;  // elements between an aligned address and the first one

  std::string describe() const {
    return fmt::format(
        "M {} N {} K {} batch {}x{} {} {} -> {} layouts {} {} {} alpha {} beta {} bias {} act {}{}{}{}", M, N,
        K, outer, inner, name_of(a), name_of(b), name_of(c), static_cast<int>(layout_a),
        static_cast<int>(layout_b), static_cast<int>(layout_c), alpha, beta, with_bias,
        static_cast<int>(activation), activation_backward ? " backward" : "",
        with_residual ? " residual" : "", first == 0 ? " aligned" : "");
  }
};

inline double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return NAN;
}

inline double activation_derivative(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return 1;
    case Activation::relu:
      return x > 0 ? 1 : 0;
    case Activation::gelu_tanh: {
      const double t = std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::gelu_erf:
      return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    case Activation::silu: {
      const double s = 1 / (1 + std::exp(-x));
      return s * (1 + x * (1 - s));
    }
  }
  return NAN;
}

}  // namespace ergon::kernels::test
