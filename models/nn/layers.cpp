#include "models/nn/layers.h"

#include <cmath>

#include "models/nn/init.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/rms_norm.h"

namespace ergon::nn {

Linear::Linear(std::int64_t in_features, std::int64_t out_features, const LinearOptions& options)
    : layout_(options.layout) {
  ERGON_CHECK(in_features > 0 && out_features > 0, "[Linear] {} to {} features: expected positive numbers",
              in_features, out_features);
  const double bound = 1 / std::sqrt(static_cast<double>(in_features));
  weight = empty(layout_ == WeightLayout::out_in ? Shape{out_features, in_features}
                                                 : Shape{in_features, out_features});
  init::uniform_(weight, -bound, bound);
  register_parameter("weight", weight);
  if (options.bias) {
    bias = empty({out_features});
    init::uniform_(bias, -bound, bound);
    register_parameter("bias", bias);
  }
}

Tensor Linear::forward(const Tensor& input) { return ops::linear(input, weight, bias, {.layout = layout_}); }

Tensor Linear::forward(const Tensor& input, ops::Activation activation) {
  return call(
      [&](const Tensor& x) {
        return ops::linear(x, weight, bias, {.activation = activation, .layout = layout_});
      },
      input);
}

Embedding::Embedding(std::int64_t num_embeddings, std::int64_t embedding_dim)
    : weight(empty({num_embeddings, embedding_dim})) {
  init::normal_(weight);
  register_parameter("weight", weight);
}

Tensor Embedding::forward(const Tensor& indices) { return ops::embedding(weight, indices); }

LayerNorm::LayerNorm(std::int64_t features, double eps, bool with_bias)
    : weight(ones({features})), eps_(eps) {
  register_parameter("weight", weight);
  if (with_bias) {
    bias = zeros({features});
    register_parameter("bias", bias);
  }
}

Tensor LayerNorm::forward(const Tensor& input) { return ops::layer_norm(input, weight, bias, eps_); }

std::pair<Tensor, Tensor> LayerNorm::forward_add(const Tensor& x, const Tensor& residual) {
  return call(
      [this](const Tensor& a, const Tensor& b) {
        const auto [normed, sum] = ops::add_layer_norm(a, b, weight, bias, eps_);
        return std::pair(normed, sum);
      },
      x, residual);
}

RMSNorm::RMSNorm(std::int64_t features, double eps) : weight(ones({features})), eps_(eps) {
  register_parameter("weight", weight);
}

Tensor RMSNorm::forward(const Tensor& input) { return ops::rms_norm(input, weight, eps_); }

std::pair<Tensor, Tensor> RMSNorm::forward_add(const Tensor& x, const Tensor& residual) {
  return call(
      [this](const Tensor& a, const Tensor& b) {
        const auto [normed, sum] = ops::add_rms_norm(a, b, weight, eps_);
        return std::pair(normed, sum);
      },
      x, residual);
}

Dropout::Dropout(double p) : p_(p) {
  ERGON_CHECK(p >= 0 && p <= 1, "[Dropout] probability {}: expected a number in [0, 1]", p);
}

Tensor Dropout::forward(const Tensor& input) { return is_training() ? ops::dropout(input, p_) : input; }

}  // namespace ergon::nn
