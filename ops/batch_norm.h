#pragma once

#include "core/tensor.h"

namespace ergon::ops {

// Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) with PyTorch's semantics, differentiable in
// x, weight and bias.
//   x                          (N, C, H, W)  any floating dtype
//   weight, bias               (C), floating, or undefined: 1 and 0
//   running_mean, running_var  (C), floating, or undefined while training
// training: normalises with the mean and biased variance of x, and moves the running statistics, in place, by
// `momentum` towards the mean and the unbiased variance. Otherwise normalises with the running statistics.
// Returns x's shape and dtype; statistics are computed in fp32 (f64 for f64). Throws Error naming the shapes
// if they do not fit, and when training on a single value a channel.
Tensor batch_norm2d(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor running_mean,
                    Tensor running_var, bool training, double momentum = 0.1, double eps = 1e-5);

}  // namespace ergon::ops
