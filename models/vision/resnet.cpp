#include "models/vision/resnet.h"

#include "models/language/config_json.h"
#include "models/nn/init.h"
#include "ops/arithmetic.h"
#include "ops/pooling.h"

namespace ergon::models {
namespace {

constexpr nn::Conv2dOptions conv3x3(std::int64_t stride) {
  return {.stride = stride, .padding = 1, .bias = false};
}

void fill_stage(nn::ModuleList<BasicBlock>& stage, std::int64_t blocks, std::int64_t in_channels,
                std::int64_t out_channels, std::int64_t stride) {
  for (std::int64_t i = 0; i < blocks; ++i) {
    stage.emplace_back(i == 0 ? in_channels : out_channels, out_channels, i == 0 ? stride : 1);
  }
}

}  // namespace

void ResNetConfig::validate() const {
  check_positive(
      "resnet",
      {{"depth", depth}, {"width", width}, {"in_channels", in_channels}, {"num_classes", num_classes}});
  ERGON_CHECK(depth >= 8 && depth % 6 == 2, "[resnet] depth {}: expected 6n + 2 layers: 8, 14, 20, ...",
              depth);
}

ResNetConfig ResNetConfig::from_json(const nlohmann::json& json) {
  const ConfigReader read("resnet", json);
  read.expect("model_type", "cifar_resnet");
  const ResNetConfig config{.depth = read.integer("depth"),
                            .width = read.integer("width"),
                            .in_channels = read.integer("in_channels"),
                            .num_classes = read.integer("num_classes")};
  config.validate();
  return config;
}

nlohmann::json ResNetConfig::to_json() const {
  return {{"model_type", "cifar_resnet"},
          {"depth", depth},
          {"width", width},
          {"in_channels", in_channels},
          {"num_classes", num_classes}};
}

BasicBlock::BasicBlock(std::int64_t in_channels, std::int64_t out_channels, std::int64_t stride)
    : conv1(in_channels, out_channels, 3, conv3x3(stride)),
      bn1(out_channels),
      conv2(out_channels, out_channels, 3, conv3x3(1)),
      bn2(out_channels),
      projects_(stride != 1 || in_channels != out_channels) {
  if (projects_) {
    downsample
        .add<nn::Conv2d>(in_channels, out_channels, 1, nn::Conv2dOptions{.stride = stride, .bias = false})
        .add<nn::BatchNorm2d>(out_channels);
  }
  register_module("conv1", conv1);
  register_module("bn1", bn1);
  register_module("conv2", conv2);
  register_module("bn2", bn2);
  register_module("downsample", downsample);
}

Tensor BasicBlock::forward(const Tensor& input) {
  const Tensor hidden = ops::relu(bn1(conv1(input)));
  return ops::relu(bn2(conv2(hidden)) + (projects_ ? downsample(input) : input));
}

ResNet::ResNet(const ResNetConfig& config)
    : conv1((config.validate(), config.in_channels), config.width, 3, conv3x3(1)),
      bn1(config.width),
      fc(4 * config.width, config.num_classes),
      config_(config) {
  const std::int64_t blocks = (config.depth - 2) / 6;
  fill_stage(layer1, blocks, config.width, config.width, 1);
  fill_stage(layer2, blocks, config.width, 2 * config.width, 2);
  fill_stage(layer3, blocks, 2 * config.width, 4 * config.width, 2);
  register_module("conv1", conv1);
  register_module("bn1", bn1);
  register_module("layer1", layer1);
  register_module("layer2", layer2);
  register_module("layer3", layer3);
  register_module("fc", fc);
  for (auto& [name, parameter] : named_parameters()) {
    if (parameter.dim() != 4) continue;
    nn::init::kaiming_normal_(parameter, parameter.size(0) * parameter.size(2) * parameter.size(3));
  }
}

Tensor ResNet::forward(const Tensor& images) {
  Tensor x = ops::relu(bn1(conv1(images)));
  for (nn::ModuleList<BasicBlock>* stage : {&layer1, &layer2, &layer3}) {
    for (BasicBlock& block : *stage) x = block(x);
  }
  return fc(ops::global_avg_pool2d(x));
}

}  // namespace ergon::models
