#pragma once

// One pass over all parameters for an optimiser's step.

#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace ergon::kernels {

// One parameter tensor. Everything is contiguous; param, grad: `dtype` (f32 | bf16 | f16 | f64).
struct OptimizerTensor {
  DType dtype = DType::f32;
  // f32, bf16, or u8: codes of kernels/dynamic_code.h, states[0] signed, states[1] unsigned. f64 for f64.
  DType state_dtype = DType::f32;
  bool stochastic = false;   // param (bf16) is rounded stochastically
  std::uint32_t number = 0;  // of the tensor, for random numbers
  std::int64_t numel = 0;
  void* param = nullptr;
  void* grad = nullptr;
  float* master = nullptr;  // what param is rounded from; null: param itself
  void* states[2] = {};     // AdamW: exp_avg, exp_avg_sq; SGD: momentum buffer, null without
  float* scales[2] = {};    // of u8 states, one a kCodeBlock elements
  double lr = 0;
  double weight_decay = 0;
  std::int64_t first_chunk = 0;  // chunks of kOptimizerChunk elements of the tensors before this one
};

// What a thread of the CPU or a block of the device takes at a time, of one tensor.
inline constexpr std::int64_t kOptimizerChunk = 16384;

struct OptimizerTensors {
  std::span<const OptimizerTensor> list;
  std::int64_t chunks = 0;  // of all tensors
  // CUDA: the same list in the device's memory, and a counter there that is 0 between kernels.
  const OptimizerTensor* device = nullptr;
  unsigned* blocks_done = nullptr;
};

// What the steps of all optimisers share. The pointers (null: not used) lie where the tensors do, so that
// nothing waits for the device.
struct OptimizerStep {
  OptimizerTensors tensors;
  double grad_scale = 1;               // gradients are multiplied by it
  const float* grad_factor = nullptr;  // and by this
  const float* found_inf = nullptr;    // where it is not 0 nothing changes, and *skipped goes up by 1
  std::int64_t* skipped = nullptr;     // steps that were not made so far
  std::int64_t step = 1;               // this one's number from 1, the skipped ones included
  std::uint64_t seed = 0;
};

// With t = step - *skipped, the number of the steps made:
// g = grad * grad_scale * *grad_factor
// exp_avg = beta1 * exp_avg + (1 - beta1) * g;  exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2
// p = p * (1 - lr * weight_decay) - lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)
// p is the master where there is one; param then becomes p rounded to nearest, or stochastically. States are
// stored after p has been computed from them: bf16 rounded stochastically (to nearest, a moving average with
// beta2 = 0.999 would stand still), u8 as dynamic codes with the largest magnitude of each block.
// Random numbers: word i % 4 of philox4x32(seed, i / 4, {t, 4 * number + k}) for element i of the parameter
// (k = 0) and of its states (k = 1, 2): the same on every device.
// One parallel region, or launch, whatever the number of tensors. Elementwise: deterministic. Computed in
// fp32 (f64 for f64). Bytes an fp32 element: 28 (read four, write three).
struct AdamWConstants {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
};

// g = grad * grad_scale * *grad_factor + weight_decay * p
// buf = momentum * buf + (1 - dampening) * g, or g in the first step made
// p -= lr * (nesterov ? g + momentum * buf : buf), or lr * g without momentum
struct SgdConstants {
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
};

namespace cpu {

void adamw_step(const OptimizerStep& step, const AdamWConstants& constants);
void sgd_step(const OptimizerStep& step, const SgdConstants& constants);

}  // namespace cpu

// One launch for a step whatever the number of tensors. A warp takes 256 elements, a lane two vectors of four
// neighbours where the tensor's pointers are multiples of 16 bytes, else single elements.
namespace cuda {

void adamw_step(const OptimizerStep& step, const AdamWConstants& constants);
void sgd_step(const OptimizerStep& step, const SgdConstants& constants);

}  // namespace cuda
}  // namespace ergon::kernels
