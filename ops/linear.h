#pragma once

#include "core/tensor.h"
#include "kernels/gemm.h"

namespace ergon::ops {

using kernels::Activation;

// How a linear layer's weight lies in memory: PyTorch's nn.Linear stores (out, in), GPT-2's Conv1D (in, out).
enum class WeightLayout { out_in, in_out };

struct LinearOptions {
  Activation activation = Activation::none;
  WeightLayout layout = WeightLayout::out_in;
};

// activation(x W^T + bias) in one kernel, differentiable.
//   x       (..., in)
//   weight  (out, in), or (in, out) with WeightLayout::in_out
//   bias    (out), or undefined
// Returns (..., out). One floating dtype, to which Autocast converts x and weight; the bias of half precision
// may be f32. Gradients have their operand's dtype, rounded once from fp32 sums. With an activation the
// pre-activation is kept for the backward. Throws Error naming the shapes if they do not fit together.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
              const LinearOptions& options = {});

}  // namespace ergon::ops
