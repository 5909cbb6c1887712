#pragma once

// Residual networks for small images: the 6n + 2 layers of He et al. 2015 (arXiv 1512.03385, section 4.2),
// with projections where the size changes and torchvision's parameter names (conv1, bn1, layer1.0.conv1, ...,
// layer2.0.downsample.0, fc).

#include <optional>

#include <nlohmann/json.hpp>

#include "models/nn/conv.h"
#include "models/nn/layers.h"

namespace ergon::models {

struct ResNetConfig {
  std::int64_t depth = 8;   // 6n + 2: 8, 14, 20, 32, ...
  std::int64_t width = 16;  // channels of the first stage; doubled in the second and third
  std::int64_t in_channels = 1;
  std::int64_t num_classes = 10;

  static ResNetConfig from_json(const nlohmann::json& json);
  nlohmann::json to_json() const;
  // Throws Error naming the field if the values do not make a model.
  void validate() const;
};

class BasicBlock : public nn::Layer {
 public:
  BasicBlock(std::int64_t in_channels, std::int64_t out_channels, std::int64_t stride);
  Tensor forward(const Tensor& input) override;

  nn::Conv2d conv1;
  nn::BatchNorm2d bn1;
  nn::Conv2d conv2;
  nn::BatchNorm2d bn2;
  nn::Sequential downsample;  // 1x1 convolution and normalisation; empty where the input is added as it is

 private:
  bool projects_;
};

// (N, in_channels, H, W) → logits (N, num_classes), any H and W. Convolutions start normal with variance
// 2 / fan_out (He et al. 2015, arXiv 1502.01852).
class ResNet : public nn::Layer {
 public:
  explicit ResNet(const ResNetConfig& config = {});
  Tensor forward(const Tensor& images) override;
  nlohmann::json config() const { return config_.to_json(); }
  std::int64_t num_classes() const { return config_.num_classes; }

  nn::Conv2d conv1;
  nn::BatchNorm2d bn1;
  nn::ModuleList<BasicBlock> layer1, layer2, layer3;
  nn::Linear fc;

 private:
  ResNetConfig config_;
};

}  // namespace ergon::models
