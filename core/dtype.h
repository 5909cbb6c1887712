#pragma once

// Element types of tensors. On the CPU bf16 and f16 are Eigen's types (core/half.h).

#include <cstdint>
#include <string_view>

namespace ergon {

enum class DType : std::uint8_t { f32, bf16, f16, f64, i8, u8, i32, i64, boolean };

// Bytes of one element.
std::int64_t size_of(DType dtype);

// "f32", "bf16", ..., "bool".
std::string_view name_of(DType dtype);

// The inverse of name_of; throws Error for an unknown name.
DType parse_dtype(std::string_view name);

constexpr bool is_floating_point(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f64;
}

// bf16 and f16: stored in 16 bits, computed in fp32.
constexpr bool is_half(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16; }

// The type that a result of combining a and b has: floating point before integer before bool, the wider
// before the narrower, and f32 for bf16 with f16.
DType promote(DType a, DType b);

}  // namespace ergon
