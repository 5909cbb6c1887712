#pragma once

// What the backward of a linear layer needs besides matrix products.

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "kernels/gemm.h"

namespace ergon::kernels {

// dpre[r,c] = dout[r,c] * act'(pre[r,c]);  dbias[c] = sum_r dpre[r,c]
// dout, pre, dpre  (rows, cols) contiguous, one dtype: f32 | bf16 | f16 | f64. pre is not read for
// Activation::none.
//                  dpre may be pre itself, but not dout; null: not written
// dbias            (cols), of dbias_dtype, = (not +=); null: not computed
// workspace        bias_gradient_workspace(rows, cols) elements, f32 (f64 for f64): on CUDA, for dbias
// Sums in fp32 (f64 for f64), in blocks of 32 rows or, on CUDA, rows / 128: relative error below
// (32 + rows / 32) * 2^-24 of the sum of magnitudes. Deterministic. Bytes: dout, pre and dpre once each.
// Flops: rows * cols, and the derivative's.
struct BiasActivationBackward {
  DType dtype = DType::f32;
  Activation activation = Activation::none;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const void* dout = nullptr;
  const void* pre = nullptr;
  void* dpre = nullptr;
  void* dbias = nullptr;
  DType dbias_dtype = DType::f32;
  void* workspace = nullptr;
};

// Rows of a block's share of dbias: at most 128 shares, of at least 32 rows.
constexpr std::int64_t bias_gradient_chunk_rows(std::int64_t rows) {
  return std::max<std::int64_t>(32, (rows + 127) / 128);
}
constexpr std::int64_t bias_gradient_workspace(std::int64_t rows, std::int64_t cols) {
  const std::int64_t chunk = bias_gradient_chunk_rows(rows);
  return (rows + chunk - 1) / chunk * cols;
}

namespace cpu {

void bias_activation_backward(const BiasActivationBackward& params);

}  // namespace cpu

// 16-byte vectors where rows consist of whole ones and pointers are multiples of 16 bytes. Bytes: besides the
// CPU's, the workspace written and read.
namespace cuda {

void bias_activation_backward(const BiasActivationBackward& params);

}  // namespace cuda
}  // namespace ergon::kernels
