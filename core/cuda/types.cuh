#pragma once

// Element types on the device, and dispatch to them. Device code does without Eigen's half types: theirs and
// CUDA's have the same bits.

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/dtype.h"
#include "core/error.h"

namespace ergon::device {

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T>
struct TypeTag {
  using type = T;
};

template <class T>
inline constexpr bool is_half_type = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

// The type that arithmetic on T is carried out in.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f(TypeTag<T>{}) with the floating-point type of dtype; `op` names the caller in the error.
template <class F>
void dispatch_floating(DType dtype, const char* op, F&& f) {
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
      ERGON_FAIL("[{}] dtype {} on cuda: expected one of f32, bf16, f16, f64", op, name_of(dtype));
  }
}

// Calls f(TypeTag<T>{}) with i32 or i64.
template <class F>
void dispatch_index(DType dtype, const char* op, F&& f) {
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
void dispatch_all(DType dtype, F&& f) {
  switch (dtype) {
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
    default:
      return dispatch_floating(dtype, "dispatch", f);
  }
}

// One value as another type, as core/copy.h defines it: floating point to integer truncates, to bool says
// whether it is not 0; rounding is to nearest even. Halves go through fp32.
template <class To, class From>
__device__ __forceinline__ To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (is_half_type<From>) {
    if constexpr (std::is_same_v<From, bf16>) {
      return convert<To>(__bfloat162float(value));
    } else {
      return convert<To>(__half2float(value));
    }
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_same_v<To, bf16>) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, f16>) {
    return __float2half_rn(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace ergon::device
