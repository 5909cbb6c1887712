#include "models/nn/conv.h"

#include <cmath>

#include "models/nn/init.h"
#include "ops/batch_norm.h"
#include "ops/conv2d.h"
#include "ops/pooling.h"

namespace ergon::nn {

Conv2d::Conv2d(std::int64_t in_channels, std::int64_t out_channels, std::int64_t kernel,
               const Conv2dOptions& options)
    : options_(options) {
  ERGON_CHECK(in_channels > 0 && out_channels > 0 && kernel > 0,
              "[Conv2d] {} to {} channels, kernel {}: expected positive numbers", in_channels, out_channels,
              kernel);
  ERGON_CHECK(options.groups > 0 && in_channels % options.groups == 0 && out_channels % options.groups == 0,
              "[Conv2d] {} to {} channels: groups = {} must divide both", in_channels, out_channels,
              options.groups);
  const std::int64_t fan_in = in_channels / options.groups * kernel * kernel;
  const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
  weight = empty({out_channels, in_channels / options.groups, kernel, kernel});
  init::uniform_(weight, -bound, bound);
  register_parameter("weight", weight);
  if (options.bias) {
    bias = empty({out_channels});
    init::uniform_(bias, -bound, bound);
    register_parameter("bias", bias);
  }
}

Tensor Conv2d::forward(const Tensor& input) {
  return ops::conv2d(input, weight, bias,
                     {.stride = {options_.stride, options_.stride},
                      .padding = {options_.padding, options_.padding},
                      .dilation = {options_.dilation, options_.dilation},
                      .groups = options_.groups});
}

BatchNorm2d::BatchNorm2d(std::int64_t channels, double eps, double momentum)
    : weight(ones({channels})),
      bias(zeros({channels})),
      running_mean(zeros({channels})),
      running_var(ones({channels})),
      num_batches_tracked(zeros(Shape{}, {DType::i64})),
      eps_(eps),
      momentum_(momentum) {
  register_parameter("weight", weight);
  register_parameter("bias", bias);
  register_buffer("running_mean", running_mean);
  register_buffer("running_var", running_var);
  register_buffer("num_batches_tracked", num_batches_tracked);
}

Tensor BatchNorm2d::forward(const Tensor& input) {
  if (is_training()) num_batches_tracked.fill_(num_batches_tracked.item<double>() + 1);
  return ops::batch_norm2d(input, weight, bias, running_mean, running_var, is_training(), momentum_, eps_);
}

namespace {

ops::Pool2dOptions square(std::int64_t kernel, const Pool2dOptions& o) {
  return {.kernel = {kernel, kernel}, .stride = {o.stride, o.stride}, .padding = {o.padding, o.padding}};
}

}  // namespace

Tensor MaxPool2d::forward(const Tensor& input) { return ops::max_pool2d(input, square(kernel_, options_)); }
Tensor AvgPool2d::forward(const Tensor& input) { return ops::avg_pool2d(input, square(kernel_, options_)); }

}  // namespace ergon::nn
