#pragma once

// Layers for images (N, C, H, W), with PyTorch's names, shapes and default initialisation. Kernels, strides
// and paddings are square; ops/conv2d.h and ops/pooling.h have the general forms.

#include "models/nn/module.h"

namespace ergon::nn {

struct Conv2dOptions {
  std::int64_t stride = 1;
  std::int64_t padding = 0;
  std::int64_t dilation = 1;
  std::int64_t groups = 1;
  bool bias = true;
};

// The weight and bias start uniform in +-1/sqrt(in_channels / groups * kernel^2).
class Conv2d : public Layer {
 public:
  Conv2d(std::int64_t in_channels, std::int64_t out_channels, std::int64_t kernel,
         const Conv2dOptions& options = {});
  Tensor forward(const Tensor& input) override;

  Tensor weight;  // (out_channels, in_channels / groups, kernel, kernel)
  Tensor bias;    // (out_channels), or undefined

 private:
  Conv2dOptions options_;
};

// Batch statistics while training, running ones in evaluation mode. Starts as weight 1, bias 0.
class BatchNorm2d : public Layer {
 public:
  explicit BatchNorm2d(std::int64_t channels, double eps = 1e-5, double momentum = 0.1);
  Tensor forward(const Tensor& input) override;

  Tensor weight, bias;               // (channels)
  Tensor running_mean, running_var;  // (channels), buffers
  Tensor num_batches_tracked;        // () i64, buffer: batches seen while training

 private:
  double eps_, momentum_;
};

// stride 0: the kernel's size.
struct Pool2dOptions {
  std::int64_t stride = 0;
  std::int64_t padding = 0;
};

class MaxPool2d : public Layer {
 public:
  explicit MaxPool2d(std::int64_t kernel, const Pool2dOptions& options = {})
      : kernel_(kernel), options_(options) {}
  Tensor forward(const Tensor& input) override;

 private:
  std::int64_t kernel_;
  Pool2dOptions options_;
};

class AvgPool2d : public Layer {
 public:
  explicit AvgPool2d(std::int64_t kernel, const Pool2dOptions& options = {})
      : kernel_(kernel), options_(options) {}
  Tensor forward(const Tensor& input) override;

 private:
  std::int64_t kernel_;
  Pool2dOptions options_;
};

}  // namespace ergon::nn
