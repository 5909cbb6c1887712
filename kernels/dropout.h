#pragma once

// Random zeroes.

#include <cstdint>

#include "core/dtype.h"
#include "core/random.h"

namespace ergon::kernels {

// y[i] = kept(i) ? x[i] / (1 - p) : 0,  kept(i) = uniform_from_bits(word i of the stream) >= p
// word i: word i % 4 of philox4x32(seed, offset + i / 4). The mask is never stored: the backward is the same
// function of the same stream, applied to the gradient.
//
// x, y  (numel)  contiguous, one dtype f32 | bf16 | f16 | f64; y may be x
// p     in [0, 1]; 1 gives zeros
//
// NaN and infinities are dropped like other values. Deterministic, the same bits for any number of threads.
// No alignment is required. Bytes: numel * (x + y). Ten Philox rounds for four elements.
struct DropoutParams {
  std::int64_t numel = 0;
  DType dtype = DType::f32;
  const void* x = nullptr;
  void* y = nullptr;
  double p = 0;
  PhiloxState stream = {};
};

namespace cpu {

void dropout(const DropoutParams& params);

}  // namespace cpu

// The CPU's results to the bit. 16-byte vectors where x and y are multiples of 16 bytes.
namespace cuda {

void dropout(const DropoutParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
