#pragma once

// Layer normalisation and root-mean-square normalisation of rows, each optionally after a residual addition.

#include <algorithm>
#include <cstdint>

#include "kernels/row_matrix.h"

namespace ergon::kernels {

// s = x + residual, rounded to sum's dtype (s = x without a residual)
// y = (s - mean) * rstd * weight + bias
//   layer_norm: mean = mean_c(s), rstd = 1 / sqrt(mean_c((s - mean)^2) + eps)
//   rms_norm:   mean = 0,         rstd = 1 / sqrt(mean_c(s^2) + eps); no bias
//
// x, residual, sum, y  (rows, cols)  f32 | bf16 | f16, or all operands f64
// weight, bias         (cols)        own dtype; absent: 1 and 0
// mean, rstd           (rows)        f32, or f64 with f64 x; may be null: not stored
//
// residual and sum go together. sum and y must not overlap the inputs. Accumulates in fp32 (f64 for f64), the
// variance from differences to the mean. Deterministic, the same bits for any number of threads. No alignment
// is required. Scratch: a few rows a thread for bf16 and f16.
// Bytes: rows * cols * (x + y), with a residual twice that. Flops: about 8 * rows * cols.
struct NormForwardParams {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  double eps = 1e-5;
  RowMatrix x = {}, residual = {}, weight = {}, bias = {};
  RowMatrix sum = {}, y = {};
  void* mean = nullptr;
  void* rstd = nullptr;
};

// With xhat = (s - mean) * rstd and g = dout * weight:
//   dx      = rstd * (g - mean_c(g) - xhat * mean_c(g * xhat)) + dsum   (rms_norm: without mean_c(g))
//   dweight = sum_r dout * xhat,  dbias = sum_r dout
// dx is the gradient of x and of residual alike. All are = (not +=).
//
// dout, dsum, s, dx  (rows, cols)  dsum: the gradient of s from its other uses; absent: none. dx absent: not
//                                  wanted. dx may be the same memory as dout or dsum.
// dweight, dbias     (cols)        absent: not wanted
// workspace          norm_backward_workspace(rows, cols, kNormBackwardChunks of the device) elements of
// mean's
//                    dtype; may be null when neither dweight nor dbias is wanted
//
// dweight and dbias are summed over chunks of rows that depend on `rows` alone, then over the chunks in
// order: the same bits for any number of threads. Bytes: rows * cols * (dout + s + dx), and dsum.
struct NormBackwardParams {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  RowMatrix dout = {}, dsum = {}, s = {}, weight = {};
  const void* mean = nullptr;  // not read by rms_norm
  const void* rstd = nullptr;
  RowMatrix dx = {}, dweight = {}, dbias = {};
  void* workspace = nullptr;
};

// Rows whose share of dweight and dbias is summed by one thread of the CPU, or one block: at most `most`
// chunks, to be shared out, of at least 16 rows, for the sum over chunks to be small beside the work itself.
constexpr std::int64_t norm_backward_chunk_rows(std::int64_t rows, std::int64_t most) {
  return std::max<std::int64_t>(16, (rows + most - 1) / most);
}
constexpr std::int64_t norm_backward_workspace(std::int64_t rows, std::int64_t cols, std::int64_t most) {
  const std::int64_t chunk = norm_backward_chunk_rows(rows, most);
  return (rows + chunk - 1) / chunk * 2 * cols;
}

namespace cpu {

inline constexpr std::int64_t kNormBackwardChunks = 32;

void layer_norm_forward(const NormForwardParams& params);
void layer_norm_backward(const NormBackwardParams& params);
void rms_norm_forward(const NormForwardParams& params);
void rms_norm_backward(const NormBackwardParams& params);

}  // namespace cpu

// On the device x, residual, sum and y, and dout, dsum, s and dx, have one dtype; weight and bias that or
// f32. The vector path needs rows of whole 16-byte vectors, and pointers and row strides of multiples of 16
// bytes. A row of up to 8,192 elements (4,096 of f64, 2,048 where rows are not in vectors) is read once; what
// a longer one has beyond them is read again. Bytes: besides the CPU's, weight and bias once for each row
// that the grid works on at a time; backward: the workspace written and read, and weight once for each row
// that a block works on at a time.
namespace cuda {

inline constexpr std::int64_t kNormBackwardChunks = 256;

void layer_norm_forward(const NormForwardParams& params);
void layer_norm_backward(const NormBackwardParams& params);
void rms_norm_forward(const NormForwardParams& params);
void rms_norm_backward(const NormBackwardParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
