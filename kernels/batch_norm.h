#pragma once

// Batch normalisation of images: each channel over the batch and its positions.

#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

// y = (x - mean[c]) * rstd[c] * weight[c] + bias[c]
//
// x, y                (batch, channels, positions) contiguous, f32 | bf16 | f16 | f64
// weight, bias        (channels)  f32, f64 with f64 x; null: 1 and 0
// mean, var, rstd     (channels)  likewise. With batch_statistics all three are written: the mean, the biased
//                                 variance (from differences to the mean) and 1 / sqrt(var + eps); without,
//                                 mean and var are read and rstd is written.
//
// Within a plane sums are fp32 trees (f64 for f64), over the batch f64 in order. Deterministic, the same bits
// for any number of threads. Bytes: x three times (twice from the cache, if a channel fits), y once.
struct BatchNormForward {
  DType dtype = DType::f32;
  std::int64_t batch = 0, channels = 0, positions = 0;
  bool batch_statistics = true;
  double eps = 1e-5;
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  void* mean = nullptr;
  void* var = nullptr;
  void* rstd = nullptr;
  void* y = nullptr;
};

// With xhat = (x - mean) * rstd and M = batch * positions:
//   dbias = sum dout,  dweight = sum dout * xhat
//   dx = weight * rstd * (dout - dbias / M - xhat * dweight / M)   with batch_statistics
//   dx = weight * rstd * dout                                      without
// dout, x, dx     as x above; dx null: not wanted
// dweight, dbias  (channels), f32 (f64 for f64), always written. All are = (not +=).
struct BatchNormBackward {
  DType dtype = DType::f32;
  std::int64_t batch = 0, channels = 0, positions = 0;
  bool batch_statistics = true;
  const void* dout = nullptr;
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* mean = nullptr;
  const void* rstd = nullptr;
  void* dx = nullptr;
  void* dweight = nullptr;
  void* dbias = nullptr;
};

namespace cpu {

void batch_norm_forward(const BatchNormForward& params);
void batch_norm_backward(const BatchNormBackward& params);

}  // namespace cpu
}  // namespace ergon::kernels
