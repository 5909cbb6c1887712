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
// running_*           (channels)  likewise, with batch_statistics; null: none. Moved towards the batch's:
//                                 running += momentum * (batch - running), the variance the unbiased one.
// workspace           batch_norm_workspace() elements of the statistics' type
//
// Deterministic. Sums in fp32 (f64 for f64) of pieces of a channel, which are combined in f64.
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
  void* running_mean = nullptr;
  void* running_var = nullptr;
  double momentum = 0;
  void* y = nullptr;
  void* workspace = nullptr;
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
  void* workspace = nullptr;  // as for the forward
};

namespace cpu {

// The pieces are planes; the same bits for any number of threads.
// Bytes: x three times (twice from the cache, if a channel fits), y once.
std::int64_t batch_norm_workspace(std::int64_t batch, std::int64_t channels, std::int64_t positions);

void batch_norm_forward(const BatchNormForward& params);
void batch_norm_backward(const BatchNormBackward& params);

}  // namespace cpu

namespace cuda {

// On the current stream. The pieces are of 16,384 elements, a block each, so that channels of any number fill
// the device; the mean and the differences to it are built up from groups of elements (Chan, Golub, LeVeque,
// "Updating formulae and a pairwise algorithm for computing sample variances", 1979), so that the statistics
// take one pass over x. 16-byte vectors where positions and the tensors' addresses are multiples of them.
// Bytes: forward x twice (once without batch_statistics), y; backward dout and x twice (once where dx is
// null), dx; the statistics of the pieces once, and for each piece again.
// batch * positions < 2^31.
std::int64_t batch_norm_workspace(std::int64_t batch, std::int64_t channels, std::int64_t positions);
void batch_norm_forward(const BatchNormForward& params);
void batch_norm_backward(const BatchNormBackward& params);

}  // namespace cuda
}  // namespace ergon::kernels
