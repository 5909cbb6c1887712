#pragma once

// The C++ types behind each DType, and dispatch from a run-time DType to them.

#include <cstdint>
#include <type_traits>

#include <Eigen/Core>

#include "core/dtype.h"
#include "core/error.h"

namespace ergon {

using bf16 = Eigen::bfloat16;
using f16 = Eigen::half;

template <class T>
struct TypeTag {
  using type = T;
};

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, bf16>) return DType::bf16;
  if constexpr (std::is_same_v<T, f16>) return DType::f16;
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, std::int8_t>) return DType::i8;
  if constexpr (std::is_same_v<T, std::uint8_t>) return DType::u8;
  if constexpr (std::is_same_v<T, std::int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, std::int64_t>) return DType::i64;
  if constexpr (std::is_same_v<T, bool>) return DType::boolean;
}

// The type that arithmetic on T is carried out in: float for f32, bf16 and f16, double for f64.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f(TypeTag<T>{}) with the floating-point type of dtype; `op` names the caller in the error.
template <class F>
decltype(auto) dispatch_floating(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(TypeTag<float>{});
    case DType::bf16:
      return f(TypeTag<bf16>{});
    case DType::f16:
      return f(TypeTag<f16>{});
    case DType::f64:
      return f(TypeTag<double>{});
    default:
      ERGON_FAIL("[{}] dtype {}: expected one of f32, bf16, f16, f64", op, name_of(dtype));
  }
}

// Calls f(TypeTag<T>{}) with i32 or i64.
template <class F>
decltype(auto) dispatch_index(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::i32:
      return f(TypeTag<std::int32_t>{});
    case DType::i64:
      return f(TypeTag<std::int64_t>{});
    default:
      ERGON_FAIL("[{}] index dtype {}: expected i32 or i64", op, name_of(dtype));
  }
}

// Calls f(TypeTag<T>{}) with the type of any dtype.
template <class F>
decltype(auto) dispatch_all(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(TypeTag<float>{});
    case DType::bf16:
      return f(TypeTag<bf16>{});
    case DType::f16:
      return f(TypeTag<f16>{});
    case DType::f64:
      return f(TypeTag<double>{});
    case DType::i8:
      return f(TypeTag<std::int8_t>{});
    case DType::u8:
      return f(TypeTag<std::uint8_t>{});
    case DType::i32:
      return f(TypeTag<std::int32_t>{});
    case DType::i64:
      return f(TypeTag<std::int64_t>{});
    case DType::boolean:
      return f(TypeTag<bool>{});
  }
  ERGON_FAIL("dtype {} is not a DType", static_cast<int>(dtype));
}

}  // namespace ergon
