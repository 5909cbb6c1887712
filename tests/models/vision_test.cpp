#include <cmath>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "models/nn/conv.h"
#include "models/vision/resnet.h"
#include "models/vision/training_task.h"
#include "ops/batch_norm.h"
#include "ops/cross_entropy.h"
#include "optim/adamw.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using models::ResNet;
using models::ResNetConfig;

const ResNetConfig kSmall{.depth = 8, .width = 4, .in_channels = 1, .num_classes = 3};

Shape shape_of(const NamedTensors& state, const std::string& wanted) {
  for (const auto& [name, tensor] : state) {
    if (name == wanted) return tensor.shape();
  }
  return {-1};
}

TEST(Conv2dLayer, ShapesAndInitialRange) {
  nn::Conv2d conv(4, 6, 3, {.stride = 2, .padding = 1, .groups = 2});
  EXPECT_EQ(conv.weight.shape(), (Shape{6, 2, 3, 3}));
  EXPECT_EQ(conv(ones({2, 4, 7, 8})).shape(), (Shape{2, 6, 4, 4}));
  for (const double v : conv.weight.to_vector<double>()) EXPECT_LE(std::abs(v), 1 / std::sqrt(18.0));
  EXPECT_EQ(test::error_of([] { nn::Conv2d(4, 6, 3, {.groups = 4}); }),
            "[Conv2d] 4 to 6 channels: groups = 4 must divide both");
}

TEST(BatchNorm2dLayer, BuffersFollowTheMode) {
  nn::BatchNorm2d norm(2);
  const Tensor x = test::uniform({3, 2, 4, 4}, {.low = 1, .high = 3});
  norm(x);
  norm(x);
  EXPECT_EQ(norm.num_batches_tracked.item<std::int64_t>(), 2);
  const Tensor mean = norm.running_mean.clone();
  EXPECT_FALSE(test::near(mean, zeros({2})));
  norm.eval();
  const Tensor y = norm(x);
  EXPECT_TRUE(equal_bits(mean, norm.running_mean));
  EXPECT_EQ(norm.num_batches_tracked.item<std::int64_t>(), 2);
  EXPECT_TRUE(equal_bits(
      y, ops::batch_norm2d(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, false)));
  EXPECT_EQ(norm.named_buffers().size(), 3u);
}

TEST(PoolLayers, DefaultStrideIsTheKernel) {
  const Tensor x = from_vector<float>({1, 2, 3, 6}, {1, 1, 2, 2});
  EXPECT_EQ(nn::MaxPool2d(2)(x).item<float>(), 6);
  EXPECT_EQ(nn::AvgPool2d(2)(x).item<float>(), 3);
  EXPECT_EQ(nn::MaxPool2d(3, {.stride = 1, .padding = 1})(x).shape(), (Shape{1, 1, 2, 2}));
}

TEST(ResNet, NamesShapesAndSizes) {
  ResNet model(ResNetConfig{});
  const NamedTensors state = model.state_dict();
  EXPECT_EQ(shape_of(state, "conv1.weight"), (Shape{16, 1, 3, 3}));
  EXPECT_EQ(shape_of(state, "layer1.0.bn2.running_var"), (Shape{16}));
  EXPECT_EQ(shape_of(state, "layer2.0.downsample.0.weight"), (Shape{32, 16, 1, 1}));
  EXPECT_EQ(shape_of(state, "layer3.0.downsample.1.num_batches_tracked"), (Shape{}));
  EXPECT_EQ(shape_of(state, "fc.weight"), (Shape{10, 64}));
  EXPECT_EQ(shape_of(state, "layer1.0.downsample.0.weight"), (Shape{-1}));
  // Convolutions, projections, norms, classifier.
  EXPECT_EQ(model.num_parameters(), 9 * (16 + 2 * 256 + 512 + 1024 + 2048 + 4096) + 512 + 2048
                                        + 2 * (16 * 3 + 32 * 3 + 64 * 3) + 64 * 10 + 10);
  EXPECT_EQ(model(zeros({2, 1, 28, 28})).shape(), (Shape{2, 10}));
}

TEST(ResNet, ConfigRoundTripAndErrors) {
  const ResNetConfig config = ResNetConfig::from_json(ResNetConfig{.depth = 20, .width = 24}.to_json());
  EXPECT_EQ(config.depth, 20);
  EXPECT_EQ(config.width, 24);
  EXPECT_EQ(test::error_of([] { ResNet(ResNetConfig{.depth = 9}); }),
            "[resnet] depth 9: expected 6n + 2 layers: 8, 14, 20, ...");
  EXPECT_EQ(test::error_of([] {
              ResNetConfig::from_json({{"depth", 8}});
            }),
            "[resnet] config.json: width is missing");
}

// Every parameter's gradient along a random direction against the difference of the loss, in f64.
TEST(ResNet, GradientMatchesDifferences) {
  manual_seed(5);
  ResNet model(kSmall);
  model.to(DType::f64);
  const Tensor x = test::uniform({3, 1, 8, 8}, {.dtype = DType::f64}),
               targets = from_vector<std::int64_t>({0, 2, 1}, {3}, {DType::i64});
  const auto loss = [&] { return ops::cross_entropy(model(x), targets); };
  loss().backward();
  for (const auto& [name, parameter] : model.named_parameters()) {
    const std::vector<double> grad = parameter.grad().to_vector<double>();
    double* value = parameter.data<double>();
    const auto i = static_cast<std::size_t>(parameter.numel() / 2);
    const double before = value[i], step = 1e-6;
    value[i] = before + step;
    const double above = loss().item<double>();
    value[i] = before - step;
    const double below = loss().item<double>();
    value[i] = before;
    EXPECT_NEAR(grad[i], (above - below) / (2 * step), 1e-7 + 1e-5 * std::abs(grad[i])) << name;
  }
}

// Three classes: images brighter in the upper, middle or lower third.
data::ImageDataset stripes(std::int64_t count) {
  data::ImageDataset set{zeros({count, 1, 9, 9}, {DType::u8}), zeros({count}, {DType::i32}), 3, "stripes"};
  for (std::int64_t i = 0; i < count; ++i) {
    set.labels.data<std::int32_t>()[i] = static_cast<std::int32_t>(i % 3);
    for (std::int64_t p = 0; p < 81; ++p) {
      const bool bright = p / 27 == i % 3;
      set.images.data<std::uint8_t>()[i * 81 + p] =
          static_cast<std::uint8_t>((bright ? 150 : 40) + (p * 7 + i * 13) % 50);
    }
  }
  return set;
}

TEST(ImageTask, LearnsAndResumesItsData) {
  manual_seed(1);
  ResNet model(kSmall);
  models::ImageTask task(model, model.config(), stripes(96), stripes(31), {.batch = 16, .eval_batch = 10});
  optim::AdamW optimizer(model.named_parameters(), {.lr = 1e-2});
  const nlohmann::json start = task.data_state();
  const double first = task.next_loss().item<double>();
  for (int step = 0; step < 40; ++step) {
    task.next_loss().backward();
    optimizer.step();
    optimizer.zero_grad();
  }
  model.eval();
  const auto metrics = task.evaluate();
  ASSERT_EQ(metrics.size(), 2u);
  EXPECT_EQ(metrics[0].first, "val_loss");
  EXPECT_EQ(metrics[1].first, "val_accuracy");
  EXPECT_LT(metrics[0].second, first / 2);
  EXPECT_GT(metrics[1].second, 0.9);
  const double a = [&] {
    task.set_data_state(start);
    return task.next_loss().item<double>();
  }();
  const double b = [&] {
    task.set_data_state(start);
    return task.next_loss().item<double>();
  }();
  EXPECT_EQ(a, b);
}

TEST(ImageTask, DatasetsMustFitTogether) {
  ResNet model(kSmall);
  data::ImageDataset other = stripes(3);
  other.num_classes = 4;
  other.name = "other";
  EXPECT_EQ(test::error_of([&] { models::ImageTask(model, model.config(), stripes(6), other); }),
            "[images] stripes has images (6, 1, 9, 9) of 3 classes, other images (3, 1, 9, 9) of 4 classes: "
            "expected the same");
}

}  // namespace
}  // namespace ergon
