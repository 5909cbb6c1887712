// What the contract of kernels/batch_norm.h says beyond what the op uses: outputs of any content, absent
// operands, statistics that are only read.

#include "kernels/batch_norm.h"

#include <gtest/gtest.h>

#include "core/tensor.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

constexpr std::int64_t kBatch = 4, kChannels = 3, kPositions = 33;
const Shape kShape{kBatch, kChannels, kPositions};

// Each plane is its channel's mean plus or minus one, as often: statistics are exact.
Tensor images(DType dtype) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < numel(kShape); ++i) {
    const std::int64_t n = i / (kChannels * kPositions), c = i / kPositions % kChannels;
    values.push_back(static_cast<double>(2 * c) + ((n + i % kPositions) % 2 == 0 ? 1.0 : -1.0));
  }
  return from_vector<double>(values, kShape).to(dtype);
}

TEST(BatchNormKernel, StatisticsOfTheBatchWithoutWeightAndBias) {
  for (const DType dtype : kFloatingDTypes) {
    const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
    const Tensor x = in_layout(images(dtype), Layout::misaligned), y = poisoned(kShape, dtype);
    const Tensor mean = poisoned({kChannels}, wide), var = poisoned({kChannels}, wide),
                 rstd = poisoned({kChannels}, wide);
    cpu::batch_norm_forward({.dtype = dtype,
                             .batch = kBatch,
                             .channels = kChannels,
                             .positions = kPositions,
                             .eps = 3,  // 1 / sqrt(1 + 3) is exact
                             .x = x.data_ptr(),
                             .mean = mean.data_ptr(),
                             .var = var.data_ptr(),
                             .rstd = rstd.data_ptr(),
                             .y = y.data_ptr()});
    EXPECT_TRUE(near(mean, std::vector<double>{0, 2, 4}));
    EXPECT_TRUE(near(var, std::vector<double>{1, 1, 1}));
    EXPECT_TRUE(near(rstd, std::vector<double>{0.5, 0.5, 0.5}));
    std::vector<double> expected = x.to_vector<double>();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      expected[i] = (expected[i] - 2 * static_cast<double>(i / kPositions % kChannels)) / 2;
    }
    EXPECT_TRUE(near(y, expected));
  }
}

TEST(BatchNormKernel, GivenStatisticsAreOnlyRead) {
  const Tensor x = images(DType::f32), y = poisoned(kShape, DType::f32),
               rstd = poisoned({kChannels}, DType::f32);
  const Tensor mean = from_vector<float>({1, 2, 3}, {kChannels}),
               var = from_vector<float>({0, 3, 15}, {kChannels});
  cpu::batch_norm_forward({.batch = kBatch,
                           .channels = kChannels,
                           .positions = kPositions,
                           .batch_statistics = false,
                           .eps = 1,
                           .x = x.data_ptr(),
                           .mean = mean.data_ptr(),
                           .var = var.data_ptr(),
                           .rstd = rstd.data_ptr(),
                           .y = y.data_ptr()});
  EXPECT_TRUE(near(mean, std::vector<double>{1, 2, 3}));
  EXPECT_TRUE(near(var, std::vector<double>{0, 3, 15}));
  EXPECT_TRUE(near(rstd, std::vector<double>{1, 0.5, 0.25}));
  std::vector<double> expected = x.to_vector<double>();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto c = static_cast<double>(i / kPositions % kChannels);
    expected[i] = (expected[i] - (c + 1)) * std::exp2(-c);
  }
  EXPECT_TRUE(near(y, expected));
}

TEST(BatchNormKernel, BackwardWithoutAnInputGradient) {
  const Tensor x = images(DType::f32), dout = integers(kShape, {.seed = 2});
  const Tensor mean = from_vector<float>({0, 2, 4}, {kChannels}),
               rstd = from_vector<float>({1, 1, 1}, {kChannels});
  const Tensor dweight = poisoned({kChannels}, DType::f32), dbias = poisoned({kChannels}, DType::f32);
  cpu::batch_norm_backward({.batch = kBatch,
                            .channels = kChannels,
                            .positions = kPositions,
                            .dout = dout.data_ptr(),
                            .x = x.data_ptr(),
                            .mean = mean.data_ptr(),
                            .rstd = rstd.data_ptr(),
                            .dweight = dweight.data_ptr(),
                            .dbias = dbias.data_ptr()});
  const std::vector<double> xs = x.to_vector<double>(), douts = dout.to_vector<double>();
  std::vector<double> expected_weight(kChannels), expected_bias(kChannels);
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const std::size_t c = i / kPositions % kChannels;
    expected_weight[c] += douts[i] * (xs[i] - 2 * static_cast<double>(c));
    expected_bias[c] += douts[i];
  }
  EXPECT_TRUE(near(dweight, expected_weight));
  EXPECT_TRUE(near(dbias, expected_bias));
}

}  // namespace
}  // namespace ergon::kernels
