#include "ops/conv2d.h"

#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon {
namespace {

using ops::Conv2dOptions;

struct Case {
  Shape x, weight;
  Conv2dOptions options;
};

// Every way in which stride, padding, dilation and groups meet, planes smaller and larger than a vector.
const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {{2, 3, 7, 9}, {5, 3, 3, 3}, {.padding = {1, 1}}},
      {{1, 1, 28, 28}, {9, 1, 3, 3}, {.padding = {1, 1}}},
      {{2, 4, 8, 8}, {7, 4, 1, 1}, {}},
      {{2, 4, 7, 8}, {3, 4, 1, 1}, {.stride = {2, 2}}},
      {{3, 2, 8, 7}, {4, 2, 3, 3}, {.stride = {2, 2}, .padding = {1, 1}}},
      {{2, 2, 11, 9}, {3, 2, 4, 3}, {.stride = {3, 2}, .padding = {2, 0}, .dilation = {1, 2}}},
      {{1, 2, 9, 10}, {2, 2, 2, 3}, {.stride = {2, 3}, .padding = {3, 4}, .dilation = {3, 2}}},
      {{2, 6, 5, 6}, {4, 3, 3, 2}, {.padding = {1, 0}, .groups = 2}},
      {{2, 4, 6, 6}, {8, 1, 3, 3}, {.stride = {2, 1}, .padding = {1, 1}, .groups = 4}},
      {{1, 1, 1, 1}, {1, 1, 1, 1}, {.padding = {2, 1}}},
      {{17, 2, 5, 5}, {33, 2, 5, 5}, {}},
      {{2, 1, 4, 40}, {1, 1, 2, 2}, {.stride = {4, 5}}},
      {{2, 5, 9, 40}, {5, 1, 3, 3}, {.padding = {1, 1}, .groups = 5}},
  };
  return all;
}

std::string describe(const Case& c) {
  return to_string(c.x) + " " + to_string(c.weight) + " groups " + std::to_string(c.options.groups);
}

struct Reference {
  Shape y_shape;
  std::vector<double> y, y_size;  // and the sums of magnitudes
  std::vector<double> dx, dx_size;
  std::vector<double> dw, dw_size;
};

// Plain loops in fp64, y and both gradients at once.
Reference reference(const Tensor& x, const Tensor& w, const Tensor& dy, const Conv2dOptions& o) {
  const Shape &xs = x.shape(), &ws = w.shape();
  Reference r;
  r.y_shape = {xs[0], ws[0], 0, 0};
  for (int d = 0; d < 2; ++d) {
    r.y_shape[2 + d] = (xs[2 + d] + 2 * o.padding[d] - o.dilation[d] * (ws[2 + d] - 1) - 1) / o.stride[d] + 1;
  }
  const std::vector<double> xv = x.to_vector<double>(), wv = w.to_vector<double>();
  const std::vector<double> dyv = dy.defined() ? dy.to_vector<double>() : std::vector<double>();
  const auto count = [](const Shape& s) { return static_cast<std::size_t>(numel(s)); };
  r.y.resize(count(r.y_shape)), r.y_size = r.y;
  r.dx.resize(count(xs)), r.dx_size = r.dx;
  r.dw.resize(count(ws)), r.dw_size = r.dw;
  const std::int64_t group_out = ws[0] / o.groups;
  std::size_t at = 0;
  for (std::int64_t n = 0; n < xs[0]; ++n)
    for (std::int64_t k = 0; k < ws[0]; ++k)
      for (std::int64_t i = 0; i < r.y_shape[2]; ++i)
        for (std::int64_t j = 0; j < r.y_shape[3]; ++j, ++at)
          for (std::int64_t c = 0; c < ws[1]; ++c)
            for (std::int64_t a = 0; a < ws[2]; ++a)
              for (std::int64_t b = 0; b < ws[3]; ++b) {
                const std::int64_t row = i * o.stride[0] - o.padding[0] + a * o.dilation[0];
                const std::int64_t col = j * o.stride[1] - o.padding[1] + b * o.dilation[1];
                if (row < 0 || row >= xs[2] || col < 0 || col >= xs[3]) continue;
                const auto xi = static_cast<std::size_t>(
                    ((n * xs[1] + k / group_out * ws[1] + c) * xs[2] + row) * xs[3] + col);
                const auto wi = static_cast<std::size_t>(((k * ws[1] + c) * ws[2] + a) * ws[3] + b);
                r.y[at] += xv[xi] * wv[wi];
                r.y_size[at] += std::abs(xv[xi] * wv[wi]);
                if (dyv.empty()) continue;
                r.dx[xi] += dyv[at] * wv[wi];
                r.dx_size[xi] += std::abs(dyv[at] * wv[wi]);
                r.dw[wi] += dyv[at] * xv[xi];
                r.dw_size[wi] += std::abs(dyv[at] * xv[xi]);
              }
  return r;
}

// `products` roundings of the accumulator, and one to the dtype. On CUDA a product of f32 is within 2^-19: as
// 32 roundings.
std::vector<double> bounds(const std::vector<double>& values, const std::vector<double>& sizes,
                           double products, DType dtype) {
  const double acc = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
  if (dtype == DType::f32 && !test::device().is_cpu()) products += 32;
  std::vector<double> bound(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    bound[i] = 1.01 * ((products + 1) * acc * sizes[i] + test::unit_roundoff(dtype) * std::abs(values[i]))
               + test::underflow_error(dtype);
  }
  return bound;
}

TEST(Conv2d, ForwardAndGradientsWithinTheBound) {
  for (const Case& c : cases()) {
    for (const DType dtype : test::kFloatingDTypes) {
      Tensor x = test::uniform(c.x, {.dtype = dtype, .seed = 1});
      Tensor w = test::uniform(c.weight, {.dtype = dtype, .seed = 2});
      x.set_requires_grad(true);
      w.set_requires_grad(true);
      const Tensor y = ops::conv2d(x, w, {}, c.options);
      const Tensor dy = test::uniform(y.shape(), {.dtype = dtype, .seed = 3});
      y.backward(dy);
      const Reference r = reference(x.detach(), w.detach(), dy, c.options);
      ASSERT_EQ(y.shape(), r.y_shape) << describe(c);
      const double kernel = static_cast<double>(c.weight[2] * c.weight[3]);
      const double taps = kernel * static_cast<double>(c.weight[1]);
      const double outputs = kernel * static_cast<double>(c.weight[0]);
      const double positions = static_cast<double>(numel(r.y_shape) / r.y_shape[1]);
      EXPECT_TRUE(test::near_each(y, r.y, bounds(r.y, r.y_size, taps, dtype)))
          << describe(c) << name_of(dtype);
      EXPECT_TRUE(test::near_each(x.grad(), r.dx, bounds(r.dx, r.dx_size, outputs, dtype))) << describe(c);
      EXPECT_TRUE(test::near_each(w.grad(), r.dw, bounds(r.dw, r.dw_size, positions, dtype))) << describe(c);
    }
  }
}

TEST(Conv2d, IntegersAreExact) {
  const Tensor x = test::integers({3, 5, 12, 11}, {.low = -8, .high = 8, .seed = 1}),
               w = test::integers({6, 5, 3, 3}, {.low = -8, .high = 8, .seed = 2});
  const Conv2dOptions options{.stride = {2, 1}, .padding = {1, 1}};
  EXPECT_TRUE(test::near(ops::conv2d(x, w, {}, options), reference(x, w, {}, options).y));
}

TEST(Conv2d, Gradients) {
  const Case small[] = {
      {{1, 2, 3, 4}, {2, 2, 3, 2}, {.padding = {1, 0}}},
      {{1, 4, 4, 3}, {2, 2, 2, 2}, {.stride = {2, 1}, .padding = {1, 1}, .dilation = {1, 2}, .groups = 2}}};
  for (const Case& c : small) {
    const Tensor x = test::uniform(c.x, {.dtype = DType::f64, .seed = 1}),
                 w = test::uniform(c.weight, {.dtype = DType::f64, .seed = 2}),
                 b = test::uniform({c.weight[0]}, {.dtype = DType::f64, .seed = 3});
    EXPECT_TRUE(test::gradients_match(
        [&](std::span<const Tensor> in) { return ops::conv2d(in[0], in[1], in[2], c.options); }, {x, w, b}))
        << describe(c);
  }
}

TEST(Conv2d, BiasIsAddedToEveryPosition) {
  const Tensor x = test::integers({2, 2, 5, 5}), w = test::integers({3, 2, 3, 3}, {.seed = 2}),
               b = from_vector<float>({1, 2, 4}, {3}, {.device = test::device()});
  const std::vector<double> plain = ops::conv2d(x, w).to_vector<double>();
  std::vector<double> expected = plain;
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += std::exp2(i / 9 % 3);
  EXPECT_TRUE(test::near(ops::conv2d(x, w, b), expected));
}

TEST(Conv2d, InfinitiesReachOnlyTheTapsThatTouchThem) {
  Tensor x = test::integers({2, 2, 6, 7}), w = zeros({3, 2, 3, 3}, {.device = test::device()});
  w.set_requires_grad(true);
  const Tensor dy = test::integers({2, 3, 4, 5}, {.low = 1, .high = 4, .seed = 3});
  const std::vector<double> finite = reference(x, w.detach(), dy, {}).dw;
  x.select(0, 1).select(0, 1).select(0, 0).select(0, 6).fill_(INFINITY);  // the upper right corner of a plane
  ops::conv2d(x, w).backward(dy);
  const std::vector<double> dw = w.grad().to_vector<double>();
  for (std::size_t i = 0; i < dw.size(); ++i) {
    const bool touched = i / 9 % 2 == 1 && i % 9 == 2;  // channel 1, tap (0, 2)
    EXPECT_EQ(dw[i], touched ? INFINITY : finite[i]) << i;
  }
}

TEST(Conv2d, SameBitsForAnyNumberOfThreads) {
  std::int64_t batch = 0;
  const auto run = [&] {
    Tensor x = test::uniform({batch, 9, 9, 9}), w = test::uniform({21, 9, 3, 3}, {.seed = 2});
    x.set_requires_grad(true);
    w.set_requires_grad(true);
    const Tensor y = ops::conv2d(x, w, {}, {.stride = {2, 2}, .padding = {1, 1}});
    y.backward(test::uniform(y.shape(), {.seed = 3}));
    return std::vector<Tensor>{y.detach(), x.grad(), w.grad()};
  };
  for (batch = 1; batch <= 21; batch += 20) {
    const std::vector<Tensor> one = test::with_threads(1, run);
    for (const int threads : {2, 3, 5}) {
      const std::vector<Tensor> many = test::with_threads(threads, run);
      for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(equal_bits(one[i], many[i])) << threads;
    }
  }
}

TEST(Conv2d, EmptyBatch) {
  const TensorOptions options{.device = test::device()};
  Tensor x = zeros({0, 3, 5, 5}, options), w = ones({2, 3, 3, 3}, options);
  w.set_requires_grad(true);
  const Tensor y = ops::conv2d(x, w);
  EXPECT_EQ(y.shape(), (Shape{0, 2, 3, 3}));
  y.backward(zeros(y.shape(), options));
  EXPECT_TRUE(test::near(w.grad(), zeros({2, 3, 3, 3})));
}

TEST(Conv2d, ErrorsNameShapes) {
  EXPECT_EQ(
      test::error_of([] {
        ops::conv2d(zeros({3, 5, 5}), zeros({2, 3, 3, 3}));
      }),
      "[conv2d] x (3, 5, 5) and weight (2, 3, 3, 3): expected (N, C, H, W) and (O, C / groups, kH, kW)");
  EXPECT_EQ(test::error_of([] {
              ops::conv2d(zeros({1, 4, 5, 5}), zeros({2, 3, 3, 3}));
            }),
            "[conv2d] x (1, 4, 5, 5) and weight (2, 3, 3, 3): x.shape[1] / groups = 4 / 1 must equal "
            "weight.shape[1] = 3");
  EXPECT_EQ(test::error_of([] {
              ops::conv2d(zeros({1, 4, 5, 5}), zeros({3, 2, 3, 3}), {}, {.groups = 2});
            }),
            "[conv2d] groups = 2 must divide the channels of x (1, 4, 5, 5) and weight (3, 2, 3, 3)");
  EXPECT_EQ(test::error_of([] {
              ops::conv2d(zeros({1, 3, 2, 5}), zeros({2, 3, 3, 3}));
            }),
            "[conv2d] x (1, 3, 2, 5) with padding 0: smaller than the kernel of weight (2, 3, 3, 3) with "
            "dilation 1");
  EXPECT_EQ(test::error_of([] {
              ops::conv2d(zeros({1, 3, 5, 5}), zeros({2, 3, 3, 3}), zeros({3}));
            }),
            "[conv2d] bias (3,) f32: expected (2,) f32");
  EXPECT_EQ(test::error_of([] {
              ops::conv2d(zeros({1, 3, 5, 5}), zeros({2, 3, 3, 3}, {DType::bf16}));
            }),
            "[conv2d] x is f32, weight bf16: expected one floating dtype");
  EXPECT_EQ(test::error_of([] {
              ops::conv2d(zeros({1, 3, 5, 5}), zeros({2, 3, 3, 3}), {}, {.stride = {1, 0}});
            }),
            "[conv2d] stride 0, padding 0, dilation 1: expected at least 1, 0 and 1");
}

}  // namespace
}  // namespace ergon
