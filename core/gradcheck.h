#pragma once

// Comparison of analytic gradients with central differences.

#include <functional>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace ergon::autograd {

struct GradcheckOptions {
  double eps = 1e-6;   // step of the difference
  double atol = 1e-6;  // |analytic - numeric| <= atol + rtol * |numeric|
  double rtol = 1e-4;
};

// Checks d function / d input for every input that requires a gradient. The inputs must be f64 leaves; the
// function must be deterministic. Outputs of any shape: they are weighted with fixed random numbers. Throws
// Error naming the input, the index, both values and the tolerance at the first mismatch; a function that
// returns NaN is a mismatch.
void gradcheck(const std::function<Tensor(std::span<const Tensor>)>& function, std::vector<Tensor> inputs,
               const GradcheckOptions& options = {});

}  // namespace ergon::autograd
