#include "ops/batch_norm.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon {
namespace {

struct Statistics {
  std::vector<double> mean, var;  // biased
};

Statistics statistics(const Tensor& x) {
  const Shape& s = x.shape();
  const std::int64_t positions = s[2] * s[3];
  const std::vector<double> values = x.to_vector<double>();
  Statistics r;
  for (std::int64_t c = 0; c < s[1]; ++c) {
    double mean = 0, var = 0;
    const double count = static_cast<double>(s[0] * positions);
    const auto each = [&](const auto& f) {
      for (std::int64_t n = 0; n < s[0]; ++n)
        for (std::int64_t i = 0; i < positions; ++i)
          f(values[static_cast<std::size_t>((n * s[1] + c) * positions + i)]);
    };
    each([&](double v) { mean += v / count; });
    each([&](double v) { var += (v - mean) * (v - mean) / count; });
    r.mean.push_back(mean);
    r.var.push_back(var);
  }
  return r;
}

// y and a bound: the mean is within (30 + log2(positions)) roundings of the largest |x|, the variance, and so
// the factor, within a relative (positions + 8) roundings.
void expect_normalised(const Tensor& y, const Tensor& x, const Statistics& stats, const Tensor& weight,
                       const Tensor& bias, double eps) {
  const std::vector<double> values = x.to_vector<double>(), w = weight.to_vector<double>(),
                            b = bias.to_vector<double>();
  const double acc = x.dtype() == DType::f64 ? 0x1p-53 : 0x1p-24;
  const auto positions = static_cast<std::size_t>(x.shape()[2] * x.shape()[3]), channels = w.size();
  double largest = 0;
  for (const double v : values) largest = std::max(largest, std::abs(v));
  std::vector<double> expected, bound;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t c = i / positions % channels;
    const double factor = w[c] / std::sqrt(stats.var[c] + eps), centred = values[i] - stats.mean[c];
    expected.push_back(centred * factor + b[c]);
    bound.push_back(
        1.01
            * (test::unit_roundoff(x.dtype()) * std::abs(expected[i]) + 45 * acc * largest * std::abs(factor)
               + static_cast<double>(positions + 8) * acc * std::abs(centred * factor) + acc * std::abs(b[c]))
        + test::underflow_error(x.dtype()));
  }
  EXPECT_TRUE(test::near_each(y, expected, bound)) << name_of(x.dtype());
}

TEST(BatchNorm, TrainingNormalisesAndMovesTheRunningStatistics) {
  for (const DType dtype : test::kFloatingDTypes) {
    for (const Shape& shape :
         {Shape{4, 3, 5, 7}, Shape{2, 1, 1, 1}, Shape{3, 17, 6, 6}, Shape{3, 2, 80, 96}}) {
      const std::int64_t channels = shape[1];
      const Tensor x = test::uniform(shape, {.dtype = dtype, .low = -1, .high = 3}),
                   w = test::uniform({channels}, {.seed = 2}), b = test::uniform({channels}, {.seed = 3});
      const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
      Tensor mean = full({channels}, 0.5, {wide, test::device()}),
             var = full({channels}, 2, {wide, test::device()});
      const Tensor y = ops::batch_norm2d(x, w, b, mean, var, true, 0.25, 1e-3);
      const Statistics stats = statistics(x);
      expect_normalised(y, x, stats, w, b, 1e-3);
      const double count = static_cast<double>(numel(shape) / channels);
      std::vector<double> expected_mean, expected_var;
      for (std::size_t c = 0; c < stats.mean.size(); ++c) {
        expected_mean.push_back(0.75 * 0.5 + 0.25 * stats.mean[c]);
        expected_var.push_back(0.75 * 2 + 0.25 * stats.var[c] * count / (count - 1));
      }
      EXPECT_TRUE(test::near(mean, expected_mean, {.atol = 45 * test::unit_roundoff(wide) * 3}));
      EXPECT_TRUE(test::near(var, expected_var, {.atol = 60 * test::unit_roundoff(wide) * 9}));
    }
  }
}

TEST(BatchNorm, EvaluationUsesTheRunningStatistics) {
  for (const DType dtype : test::kFloatingDTypes) {
    const Tensor x = test::uniform({2, 3, 4, 5}, {.dtype = dtype}), w = test::uniform({3}, {.seed = 2}),
                 b = test::uniform({3}, {.seed = 3});
    Tensor mean = from_vector<float>({0.5F, -1, 2}, {3}, {.device = test::device()}),
           var = from_vector<float>({1, 0.25F, 4}, {3}, {.device = test::device()});
    const Tensor y = ops::batch_norm2d(x, w, b, mean, var, false);
    expect_normalised(y, x, {mean.to_vector<double>(), var.to_vector<double>()}, w, b, 1e-5);
    EXPECT_TRUE(test::near(mean, std::vector<double>{0.5, -1, 2}));  // unchanged
  }
}

// A variance far smaller than the squared mean: one pass over sums of squares would lose it.
TEST(BatchNorm, LargeMeansDoNotCancel) {
  const Tensor x = test::integers({4, 1, 4, 4}, {.low = 0, .high = 4});
  Tensor shifted = empty_like(x);
  shifted.copy_(from_vector(test::map(x, [](double v) { return v + 65536; }), x.shape()));
  const Tensor y = ops::batch_norm2d(shifted, {}, {}, {}, {}, true),
               expected = ops::batch_norm2d(x, {}, {}, {}, {}, true);
  EXPECT_TRUE(test::near(y, expected, {.atol = 4e-3}));  // the mean is rounded to 2^-8
}

TEST(BatchNorm, Gradients) {
  const auto input = [](const Shape& shape, std::uint64_t seed) {
    return test::uniform(shape, {.dtype = DType::f64, .seed = seed});
  };
  const std::vector<Tensor> inputs{input({3, 2, 3, 4}, 1), input({2}, 2), input({2}, 3)};
  for (const bool training : {true, false}) {
    EXPECT_TRUE(test::gradients_match(
        [&](std::span<const Tensor> in) {
          return ops::batch_norm2d(in[0], in[1], in[2], full({2}, 0.25, {DType::f64, test::device()}),
                                   full({2}, 2, {DType::f64, test::device()}), training);
        },
        inputs));
  }
  EXPECT_TRUE(test::gradients_match(
      [](std::span<const Tensor> in) { return ops::batch_norm2d(in[0], {}, {}, {}, {}, true); },
      {inputs[0]}));
}

TEST(BatchNorm, SameBitsForAnyNumberOfThreads) {
  const auto run = [] {
    Tensor x = test::uniform({8, 5, 20, 30}), w = test::uniform({5}, {.seed = 2});
    x.set_requires_grad(true);
    w.set_requires_grad(true);
    const Tensor y = ops::batch_norm2d(x, w, {}, {}, {}, true);
    y.backward(test::uniform(y.shape(), {.seed = 3}));
    return std::vector<Tensor>{y.detach(), x.grad(), w.grad()};
  };
  const std::vector<Tensor> one = test::with_threads(1, run), many = test::with_threads(3, run);
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(equal_bits(one[i], many[i]));
}

TEST(BatchNorm, ErrorsNameShapes) {
  const Tensor x = zeros({2, 3, 4, 4}, {.device = test::device()});
  EXPECT_EQ(test::error_of([&] {
              ops::batch_norm2d(zeros({2, 3}, {.device = test::device()}), {}, {}, {}, {}, true);
            }),
            "[batch_norm2d] x (2, 3) f32: expected (N, C, H, W) of floating point");
  EXPECT_EQ(
      test::error_of([&] { ops::batch_norm2d(x, ones({4}, {.device = test::device()}), {}, {}, {}, true); }),
      "[batch_norm2d] weight (4,) f32: expected (3,) of floating point for x (2, 3, 4, 4)");
  EXPECT_EQ(test::error_of([&] { ops::batch_norm2d(x, {}, {}, {}, {}, false); }),
            "[batch_norm2d] running_mean and running_var go together, and are needed unless training");
  EXPECT_EQ(test::error_of([&] {
              ops::batch_norm2d(zeros({1, 3, 1, 1}, {.device = test::device()}), {}, {}, {}, {}, true);
            }),
            "[batch_norm2d] x (1, 3, 1, 1): training needs more than one value a channel");
}

}  // namespace
}  // namespace ergon
