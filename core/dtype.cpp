#include "core/dtype.h"

#include <array>

#include "core/error.h"

namespace ergon {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  std::int64_t size;
};

// In the order of the enumeration.
constexpr std::array<DTypeInfo, 9> kDTypes{{{DType::f32, "f32", 4},
                                            {DType::bf16, "bf16", 2},
                                            {DType::f16, "f16", 2},
                                            {DType::f64, "f64", 8},
                                            {DType::i8, "i8", 1},
                                            {DType::u8, "u8", 1},
                                            {DType::i32, "i32", 4},
                                            {DType::i64, "i64", 8},
                                            {DType::boolean, "bool", 1}}};

// Rank in promotion: bool < u8, i8 < i32 < i64 < bf16, f16 < f32 < f64.
int rank(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return 0;
    case DType::u8:
    case DType::i8:
      return 1;
    case DType::i32:
      return 2;
    case DType::i64:
      return 3;
    case DType::bf16:
    case DType::f16:
      return 4;
    case DType::f32:
      return 5;
    case DType::f64:
      return 6;
  }
  return 0;
}

}  // namespace

std::int64_t size_of(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].size; }

std::string_view name_of(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].name; }

DType parse_dtype(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.name == name) return info.dtype;
  }
  ERGON_FAIL("unknown dtype '{}': expected one of f32, bf16, f16, f64, i8, u8, i32, i64, bool", name);
}

DType promote(DType a, DType b) {
  if (a == b) return a;
  if (rank(a) != rank(b)) return rank(a) > rank(b) ? a : b;
  return is_floating_point(a) ? DType::f32 : DType::i32;
}

}  // namespace ergon
