#pragma once

// What the elements of a tensor would become in a narrower dtype.

#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

// Adds up over any number of tensors; starts as zeros.
struct NumericsCounts {
  std::int64_t amax_bits = 0;  // of the largest finite magnitude, as an f32
  std::int64_t nonzero = 0;    // finite and not 0
  std::int64_t underflow = 0;  // of those: magnitudes below `smallest`
  std::int64_t overflow = 0;   // of those: above `largest`
  std::int64_t infinite = 0;
  std::int64_t nan = 0;
};

// counts += what x holds; amax_bits the larger.
//   x         (numel)  contiguous; f32 | bf16 | f16, or f64, which is read as f32
//   smallest  the least normal number of the narrower dtype, and `largest` its greatest finite one, as f32
// Exact whatever the order: the same bits always. One pass; bytes: numel * x.
struct NumericsParams {
  std::int64_t numel = 0;
  DType dtype = DType::f32;
  const void* x = nullptr;
  float smallest = 0;
  float largest = 0;
  NumericsCounts* counts = nullptr;
};

namespace cpu {

void numerics(const NumericsParams& params);

}  // namespace cpu

// `counts` on the device, added to with integer atomics: one of each a block. 16-byte vectors where x is a
// multiple of 16 bytes.
namespace cuda {

void numerics(const NumericsParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
