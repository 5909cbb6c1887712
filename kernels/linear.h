#pragma once

// What the backward of a linear layer needs besides matrix products.

#include <cstdint>

#include "core/dtype.h"
#include "kernels/gemm.h"

namespace ergon::kernels {

// dpre[r,c] = dout[r,c] * act'(pre[r,c]);  dbias[c] = sum_r dpre[r,c]
// dout, pre, dpre  (rows, cols) contiguous, one dtype: f32 | bf16 | f16 | f64. pre is not read for
// Activation::none.
//                  dpre may be pre itself, but not dout; null: not written
// dbias            (cols), that dtype, = (not +=); null: not computed
// Sums in fp32 (f64 for f64), in blocks of 32 rows: relative error below (32 + rows / 32) * 2^-24 of the
// sum of magnitudes. Deterministic. Bytes: dout, pre and dpre once each. Flops: rows * cols, and the
// derivative's.
struct BiasActivationBackward {
  DType dtype = DType::f32;
  Activation activation = Activation::none;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const void* dout = nullptr;
  const void* pre = nullptr;
  void* dpre = nullptr;
  void* dbias = nullptr;
};

namespace cpu {

void bias_activation_backward(const BiasActivationBackward& params);

}  // namespace cpu
}  // namespace ergon::kernels
