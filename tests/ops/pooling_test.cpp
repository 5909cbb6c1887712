#include "ops/pooling.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "tests/support/reference.h"

namespace ergon {
namespace {

using ops::Pool2dOptions;

const std::vector<Pool2dOptions>& cases() {
  static const std::vector<Pool2dOptions> all = {
      {},
      {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1}},
      {.kernel = {3, 2}, .stride = {1, 3}, .padding = {0, 1}, .count_include_pad = false},
      {.kernel = {1, 1}},
      {.kernel = {5, 4}, .stride = {2, 1}, .padding = {2, 2}, .count_include_pad = false},
  };
  return all;
}

struct Pooled {
  Shape shape;
  std::vector<double> max, average, size;  // and the average of magnitudes
};

Pooled reference(const Tensor& x, const Pool2dOptions& o) {
  const Shape& s = x.shape();
  const std::vector<double> values = x.to_vector<double>();
  Pooled r{{s[0], s[1], 0, 0}, {}, {}, {}};
  std::int64_t stride[2];
  for (int d = 0; d < 2; ++d) {
    stride[d] = o.stride[d] == 0 ? o.kernel[d] : o.stride[d];
    r.shape[2 + d] = (s[2 + d] + 2 * o.padding[d] - o.kernel[d]) / stride[d] + 1;
  }
  for (std::int64_t plane = 0; plane < s[0] * s[1]; ++plane)
    for (std::int64_t i = 0; i < r.shape[2]; ++i)
      for (std::int64_t j = 0; j < r.shape[3]; ++j) {
        double best = -std::numeric_limits<double>::infinity(), sum = 0, size = 0;
        int inside = 0;
        for (std::int64_t a = 0; a < o.kernel[0]; ++a)
          for (std::int64_t b = 0; b < o.kernel[1]; ++b) {
            const std::int64_t row = i * stride[0] - o.padding[0] + a, col = j * stride[1] - o.padding[1] + b;
            if (row < 0 || row >= s[2] || col < 0 || col >= s[3]) continue;
            const double v = values[static_cast<std::size_t>((plane * s[2] + row) * s[3] + col)];
            best = std::max(best, v);
            sum += v;
            size += std::abs(v);
            ++inside;
          }
        const double divisor = o.count_include_pad ? static_cast<double>(o.kernel[0] * o.kernel[1]) : inside;
        r.max.push_back(best);
        r.average.push_back(sum / divisor);
        r.size.push_back(size / divisor);
      }
  return r;
}

TEST(Pooling, MatchesTheReference) {
  for (const Pool2dOptions& o : cases()) {
    for (const DType dtype : test::kFloatingDTypes) {
      for (const test::Layout layout : test::kLayouts) {
        const Tensor x = test::in_layout(test::uniform({2, 3, 7, 9}, {.dtype = dtype}), layout);
        const Pooled r = reference(x, o);
        const Tensor max = ops::max_pool2d(x, o), average = ops::avg_pool2d(x, o);
        ASSERT_EQ(max.shape(), r.shape);
        ASSERT_EQ(average.shape(), r.shape);
        EXPECT_TRUE(test::near(max, r.max)) << name_of(dtype);
        const double acc = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
        std::vector<double> bound;
        for (std::size_t i = 0; i < r.size.size(); ++i) {
          bound.push_back(1.01
                              * (static_cast<double>(o.kernel[0] * o.kernel[1] + 1) * acc * r.size[i]
                                 + test::unit_roundoff(dtype) * std::abs(r.average[i]))
                          + test::underflow_error(dtype));
        }
        EXPECT_TRUE(test::near_each(average, r.average, bound)) << name_of(dtype);
      }
    }
  }
}

TEST(Pooling, Gradients) {
  const Tensor x = test::uniform({2, 2, 7, 6}, {.dtype = DType::f64});
  for (const Pool2dOptions& o : cases()) {
    EXPECT_TRUE(
        test::gradients_match([&](std::span<const Tensor> in) { return ops::max_pool2d(in[0], o); }, {x}));
    EXPECT_TRUE(
        test::gradients_match([&](std::span<const Tensor> in) { return ops::avg_pool2d(in[0], o); }, {x}));
  }
  EXPECT_TRUE(
      test::gradients_match([](std::span<const Tensor> in) { return ops::global_avg_pool2d(in[0]); }, {x}));
}

TEST(Pooling, FirstOfEqualsGetsTheGradientAndNanWins) {
  Tensor x = ones({1, 1, 2, 2}, {.device = test::device()});
  x.set_requires_grad(true);
  ops::max_pool2d(x).backward(ones({1, 1, 1, 1}, {.device = test::device()}));
  EXPECT_TRUE(test::near(x.grad(), std::vector<double>{1, 0, 0, 0}));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor y =
      ops::max_pool2d(from_vector<float>({1, nan, 3, 2}, {1, 1, 2, 2}, {.device = test::device()}));
  EXPECT_TRUE(std::isnan(y.item<float>()));
  const float low = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(ops::max_pool2d(full({1, 1, 2, 2}, low, {.device = test::device()})).item<float>(), low);
}

TEST(Pooling, GlobalAverage) {
  const Tensor y = ops::global_avg_pool2d(
      from_vector<float>({1, 2, 3, 6, 5, 5, 5, 5}, {1, 2, 2, 2}, {.device = test::device()}));
  EXPECT_EQ(y.shape(), (Shape{1, 2}));
  EXPECT_TRUE(test::near(y, std::vector<double>{3, 5}));
}

TEST(Pooling, ErrorsNameShapesAndOptions) {
  EXPECT_EQ(test::error_of([] {
              ops::max_pool2d(zeros({3, 4, 4}, {.device = test::device()}));
            }),
            "[max_pool2d] x (3, 4, 4) f32: expected (N, C, H, W) of floating point");
  EXPECT_EQ(test::error_of([] {
              ops::avg_pool2d(zeros({1, 1, 4, 1}, {.device = test::device()}));
            }),
            "[avg_pool2d] x (1, 1, 4, 1) with padding 0: smaller than the kernel, 2");
  EXPECT_EQ(test::error_of([] {
              ops::max_pool2d(zeros({1, 1, 4, 4}, {.device = test::device()}), {.padding = {2, 0}});
            }),
            "[max_pool2d] padding 2: expected at least 0 and at most half the kernel's 2");
  EXPECT_EQ(test::error_of([] {
              ops::global_avg_pool2d(zeros({1, 4}, {.device = test::device()}));
            }),
            "[global_avg_pool2d] x (1, 4) f32: expected (N, C, H, W) of floating point");
}

}  // namespace
}  // namespace ergon
