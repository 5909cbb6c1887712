#pragma once

// What layer_norm and rms_norm share: checks, allocation and the backward node. Internal to ops, but for
// AddNormResult.

#include "core/tensor.h"

namespace ergon::ops {

// Of add_layer_norm and add_rms_norm.
struct AddNormResult {
  Tensor normed;
  Tensor sum;
};

struct NormOp {
  const char* name;
  bool centered;  // layer_norm: has a mean to save; else rms_norm
};

// `residual`, `weight` and `bias` may be undefined; without a residual `sum` is.
AddNormResult normalize(const NormOp& op, const Tensor& x, const Tensor& residual, const Tensor& weight,
                        const Tensor& bias, double eps);

}  // namespace ergon::ops
