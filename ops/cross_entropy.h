#pragma once

#include "core/tensor.h"
#include "kernels/cross_entropy.h"

namespace ergon::ops {

enum class Reduction { mean, sum, none };

struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;  // positions with this target count for nothing
  double label_smoothing = 0;        // in [0, 1): that much of the target is spread evenly over all classes
  Reduction reduction = Reduction::mean;
};

// -log softmax(logits)[target] for each position, differentiable in the logits.
//   logits   (..., classes)  f32, bf16, f16 or f64
//   targets  (...)           i32 or i64, each in [0, classes) or ignore_index
// Returns a scalar, or (...) with Reduction::none, in f32 (f64 for f64). The mean is over the positions that
// are not ignored; over none of them it is NaN (0 / 0), as in PyTorch. Keeps the logits and one number a
// position for the backward; probabilities are never stored. Throws Error naming the position, the target and
// the classes if a target is out of range.
Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyOptions& options = {});

// cross_entropy(hidden weight^T, targets) without the logits of more than a chunk of positions at a time: the
// gradients of a chunk are computed right after its logits, and the backward only scales them.
//   hidden   (..., features)
//   weight   (classes, features)  hidden's dtype; Autocast converts both
//   targets  (...)
// Logits and sums of gradients are in fp32 (f64 for f64) for every dtype; the logits' gradients, from which
// the others are computed, are rounded to hidden's dtype. Reduction::none is not supported. Keeps the
// gradients of hidden and weight for the backward, in fp32 for half precision.
Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                            const CrossEntropyOptions& options = {});

namespace detail {

// Targets as the kernels take them, checked; on CUDA the kernels check them.
struct Targets {
  Tensor tensor;  // contiguous
  Tensor
      weight;  // 1 / (number of those not ignored), a scalar of the loss's dtype; undefined unless for a mean
};
Targets check_targets(const char* op, const Tensor& targets, const Shape& shape, std::int64_t classes,
                      DType loss_dtype, const CrossEntropyOptions& options);

// The sum of loss (rows), times weight if that is defined: a scalar of loss's dtype.
Tensor total_of(const Tensor& loss, const Tensor& weight);

}  // namespace detail
}  // namespace ergon::ops
