#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

// A matrix operand of the row-wise kernels: element (r, c) lies at data[r * stride + c], stride in elements.
// An optional operand is absent when data is null.
struct RowMatrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t stride = 0;
};

}  // namespace ergon::kernels
