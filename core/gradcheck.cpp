#include "core/gradcheck.h"

#include <cmath>

#include "core/autograd.h"

namespace ergon::autograd {
namespace {

// sum(output * weights) in f64.
double weighted_sum(const Tensor& output, const std::vector<double>& weights) {
  const std::vector<double> values = output.to_vector<double>();
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  return sum;
}

}  // namespace

void gradcheck(const std::function<Tensor(std::span<const Tensor>)>& function, std::vector<Tensor> inputs,
               const GradcheckOptions& options) {
  for (Tensor& input : inputs) {
    if (!input.requires_grad()) continue;
    ERGON_CHECK(input.dtype() == DType::f64 && input.is_leaf(),
                "[gradcheck] inputs that require a gradient must be f64 leaves");
    input.zero_grad();
  }
  const Tensor output = function(inputs);
  Generator generator(1234);
  const Tensor weights_tensor = rand(output.shape(), {DType::f64, output.device()}, generator);
  const std::vector<double> weights = weights_tensor.to_vector<double>();
  output.backward(weights_tensor.to(output.dtype()));

  NoGradGuard no_grad;
  for (std::size_t which = 0; which < inputs.size(); ++which) {
    const Tensor& input = inputs[which];
    if (!input.requires_grad()) continue;
    const std::vector<double> analytic = input.grad().defined()
                                             ? input.grad().to_vector<double>()
                                             : std::vector<double>(static_cast<std::size_t>(input.numel()));
    // Elements are reached through a flat view of a contiguous copy, which then stands in for the input.
    Tensor probe = empty_like(input);
    probe.copy_(input);
    const Tensor flat = probe.view({-1});
    const std::vector<double> original = flat.to_vector<double>();
    std::vector<Tensor> probed = inputs;
    probed[which] = probe;
    for (std::size_t i = 0; i < analytic.size(); ++i) {
      Tensor element = flat.select(0, static_cast<std::int64_t>(i));
      element.fill_(original[i] + options.eps);
      const double above = weighted_sum(function(probed), weights);
      element.fill_(original[i] - options.eps);
      const double below = weighted_sum(function(probed), weights);
      element.fill_(original[i]);
      const double numeric = (above - below) / (2 * options.eps);
      const double tolerance = options.atol + options.rtol * std::abs(numeric);
      ERGON_CHECK(
          std::abs(analytic[i] - numeric) <= tolerance,
          "[gradcheck] input {} of shape {}, element {}: analytic gradient {}, numeric {}, tolerance {}",
          which, input.shape(), i, analytic[i], numeric, tolerance);
    }
  }
}

}  // namespace ergon::autograd
