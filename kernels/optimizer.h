#pragma once

// One pass over all parameters for an optimiser's step, and the norm of all gradients.

#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace ergon::kernels {

// One parameter tensor. param and grad: contiguous, `dtype` (f32 | bf16 | f16 | f64). States: contiguous, f32
// (f64 for f64).
struct OptimizerTensor {
  DType dtype = DType::f32;
  std::int64_t numel = 0;
  void* param = nullptr;
  const void* grad = nullptr;
  void* state0 = nullptr;  // AdamW: exp_avg; SGD: momentum buffer, null without momentum
  void* state1 = nullptr;  // AdamW: exp_avg_sq
  double lr = 0;
  double weight_decay = 0;
  std::int64_t first_chunk = 0;  // chunks of kOptimizerChunk elements of the tensors before this one
};

// What a thread of the CPU or a block of the device takes at a time, of one tensor.
inline constexpr std::int64_t kOptimizerChunk = 16384;

struct OptimizerTensors {
  std::span<const OptimizerTensor> list;
  std::int64_t chunks = 0;                  // of all tensors
  const OptimizerTensor* device = nullptr;  // CUDA: the same list in the device's memory
};

// g = grad * grad_scale
// exp_avg = beta1 * exp_avg + (1 - beta1) * g;  exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2
// param = param * (1 - lr * weight_decay)
//         - lr / (1 - beta1^step) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps)
// One parallel region, or launch, whatever the number of tensors. Elementwise: deterministic. Computed in
// fp32 (f64 for f64). Bytes an fp32 element: 28 (read four, write three).
struct AdamWStep {
  OptimizerTensors tensors;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  std::int64_t step = 1;  // this one's number, from 1
  double grad_scale = 1;
};

// g = grad * grad_scale + weight_decay * param
// buf = momentum * buf + (1 - dampening) * g, or g in the first step
// param -= lr * (nesterov ? g + momentum * buf : buf), or lr * g without momentum
struct SgdStep {
  OptimizerTensors tensors;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
  bool first_step = false;
  double grad_scale = 1;
};

// The sum of squares of all gradients (param and states are not read). NaN and infinity come through.
// Deterministic, error below 2^-13 of the sum.
struct SumOfSquares {
  OptimizerTensors tensors;
  double* partials = nullptr;  // (chunks)
  double* sum = nullptr;       // result; both where the tensors are
};

// In f64 over the chunks, each summed in fp32 lanes.
namespace cpu {

void adamw_step(const AdamWStep& step);
void sgd_step(const SgdStep& step);
void sum_of_squares(const SumOfSquares& params);

}  // namespace cpu

// One launch for a step whatever the number of tensors, two for the sum of squares. Vectors of 16 bytes of
// the states where a tensor's pointers are multiples of 16 bytes; those of param and grad then are of 8 for
// halves.
namespace cuda {

void adamw_step(const AdamWStep& step);
void sgd_step(const SgdStep& step);
void sum_of_squares(const SumOfSquares& params);

}  // namespace cuda
}  // namespace ergon::kernels
