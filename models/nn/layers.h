#pragma once

// Layers with PyTorch's parameter names, shapes and default initialisation.

#include "models/nn/module.h"
#include "ops/activation.h"
#include "ops/linear.h"

namespace ergon::nn {

using ops::WeightLayout;

struct LinearOptions {
  bool bias = true;
  WeightLayout layout = WeightLayout::out_in;  // in_out: as the Conv1D of Hugging Face's GPT-2 stores it
};

// y = activation(x W^T + b), x (..., in_features) → (..., out_features). The weight and bias start uniform in
// +-1/sqrt(in_features).
class Linear : public Layer {
 public:
  Linear(std::int64_t in_features, std::int64_t out_features, const LinearOptions& options = {});
  Tensor forward(const Tensor& input) override;
  // With the activation in the same kernel; through call().
  Tensor forward(const Tensor& input, ops::Activation activation);

  Tensor weight;  // (out_features, in_features), or (in_features, out_features) with in_out
  Tensor bias;    // (out_features), or undefined

 private:
  WeightLayout layout_;
};

// Rows of `weight` by index: indices (...) → (..., embedding_dim). Starts standard normal.
class Embedding : public Layer {
 public:
  Embedding(std::int64_t num_embeddings, std::int64_t embedding_dim);
  Tensor forward(const Tensor& indices) override;

  Tensor weight;  // (num_embeddings, embedding_dim)
};

// Normalisation over the last dimension (Ba et al. 2016, arXiv 1607.06450). Starts as weight 1, bias 0.
class LayerNorm : public Layer {
 public:
  explicit LayerNorm(std::int64_t features, double eps = 1e-5, bool with_bias = true);
  Tensor forward(const Tensor& input) override;
  // {LayerNorm(x + residual), x + residual} in one pass; through call().
  std::pair<Tensor, Tensor> forward_add(const Tensor& x, const Tensor& residual);

  Tensor weight;  // (features)
  Tensor bias;    // (features), or undefined

 private:
  double eps_;
};

// Root-mean-square normalisation over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467).
class RMSNorm : public Layer {
 public:
  explicit RMSNorm(std::int64_t features, double eps = 1e-6);
  Tensor forward(const Tensor& input) override;
  // {RMSNorm(x + residual), x + residual} in one pass; through call().
  std::pair<Tensor, Tensor> forward_add(const Tensor& x, const Tensor& residual);

  Tensor weight;  // (features)

 private:
  double eps_;
};

// Zeroes elements with probability p while training, and scales the others by 1 / (1 - p).
class Dropout : public Layer {
 public:
  explicit Dropout(double p);
  Tensor forward(const Tensor& input) override;

 private:
  double p_;
};

class ReLU : public Layer {
 public:
  Tensor forward(const Tensor& input) override { return ops::relu(input); }
};

class GELU : public Layer {
 public:
  Tensor forward(const Tensor& input) override { return ops::gelu(input); }
};

class SiLU : public Layer {
 public:
  Tensor forward(const Tensor& input) override { return ops::silu(input); }
};

class Tanh : public Layer {
 public:
  Tensor forward(const Tensor& input) override { return ops::tanh(input); }
};

class Sigmoid : public Layer {
 public:
  Tensor forward(const Tensor& input) override { return ops::sigmoid(input); }
};

// (batch, ...) → (batch, features).
class Flatten : public Layer {
 public:
  Tensor forward(const Tensor& input) override { return input.flatten(1); }
};

}  // namespace ergon::nn
