// layer_norm, rms_norm and their forms with a residual.

#include <cmath>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "ops/layer_norm.h"
#include "ops/rms_norm.h"
#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

constexpr double kEps = 1e-5;

const Shape kShapes[] = {{1},     {31},       {32, 33},  {5, 15},   {5, 16},
                         {5, 17}, {2, 3, 64}, {600, 40}, {3, 1100}, {0, 8}};

// One of the two ops, with or without a residual.
struct Variant {
  bool centered;
  bool add;

  // {normed, sum}
  AddNormResult run(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias) const {
    if (add) {
      return centered ? add_layer_norm(x, residual, weight, bias, kEps)
                      : add_rms_norm(x, residual, weight, kEps);
    }
    return {centered ? layer_norm(x, weight, bias, kEps) : rms_norm(x, weight, kEps), {}};
  }
};
constexpr Variant kVariants[] = {{true, false}, {true, true}, {false, false}, {false, true}};

struct Values {
  std::vector<double> value, tolerance;

  explicit Values(std::size_t size) : value(size), tolerance(size) {}
  // Of the last rounding, to dtype.
  void add_rounding(DType dtype) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      tolerance[i] += 1.01 * unit_roundoff(dtype) * std::fabs(value[i]) + underflow_error(dtype);
    }
  }
};

struct Reference {
  Values y, dx, dweight, dbias;
};

// Naive loops in fp64, and a bound on the error of fp32 arithmetic: the mean is off by at most `roundings` of
// mean |s|, the variance and every product relatively by as many, and each sum of the backward by as many of
// the sum of its absolute terms.
Reference reference(bool centered, const Tensor& s, const Tensor& weight, const Tensor& bias,
                    const Tensor& dout, double unit) {
  const std::vector<double> x = s.to_vector<double>(), w = weight.to_vector<double>(),
                            b = bias.to_vector<double>(), dy = dout.to_vector<double>();
  const std::size_t cols = w.size(), rows = x.size() / cols;
  const double n = static_cast<double>(cols), roundings = unit * (40 + n / 2);
  Reference ref{Values(x.size()), Values(x.size()), Values(cols), Values(cols)};
  for (std::size_t r = 0; r < rows; ++r) {
    double mean = 0, mean_abs = 0, variance = 0, mean_g = 0, mean_gx = 0, mean_abs_g = 0, mean_abs_gx = 0;
    const auto at = [&](std::size_t c) { return r * cols + c; };
    for (std::size_t c = 0; c < cols; ++c) mean += x[at(c)] / n, mean_abs += std::fabs(x[at(c)]) / n;
    if (!centered) mean = mean_abs = 0;
    for (std::size_t c = 0; c < cols; ++c) variance += (x[at(c)] - mean) * (x[at(c)] - mean) / n;
    const double rstd = 1 / std::sqrt(variance + kEps);
    const double xhat_error = roundings * rstd * mean_abs;  // of every element of the row, from the mean
    for (std::size_t c = 0; c < cols; ++c) {
      const double xhat = (x[at(c)] - mean) * rstd, g = dy[at(c)] * w[c];
      if (centered) mean_g += g / n, mean_abs_g += std::fabs(g) / n;
      mean_gx += g * xhat / n;
      mean_abs_gx += std::fabs(g) * (std::fabs(xhat) + mean_abs * rstd) / n;
      ref.y.value[at(c)] = xhat * w[c] + (centered ? b[c] : 0);
      ref.y.tolerance[at(c)] =
          roundings * std::fabs(xhat * w[c]) + xhat_error * std::fabs(w[c]) + 2 * unit * std::fabs(b[c]);
      ref.dweight.value[c] += dy[at(c)] * xhat;
      ref.dbias.value[c] += dy[at(c)];
      const double summing = unit * static_cast<double>(rows);
      ref.dweight.tolerance[c] +=
          std::fabs(dy[at(c)]) * ((roundings + summing) * std::fabs(xhat) + xhat_error);
      ref.dbias.tolerance[c] += std::fabs(dy[at(c)]) * summing;
    }
    for (std::size_t c = 0; c < cols; ++c) {
      const double xhat = (x[at(c)] - mean) * rstd, g = dy[at(c)] * w[c];
      ref.dx.value[at(c)] = rstd * (g - mean_g - xhat * mean_gx);
      ref.dx.tolerance[at(c)] =
          2 * roundings * rstd
          * (std::fabs(g) + mean_abs_g + std::fabs(xhat) * mean_abs_gx + mean_abs * rstd * mean_abs_gx);
    }
  }
  return ref;
}

TEST(Norm, ForwardAndBackwardMatchFp64InEveryDtypeAndLayout) {
  for (const Variant& variant : kVariants) {
    for (DType dtype : kFloatingDTypes) {
      for (const Shape& shape : kShapes) {
        const Tensor x = uniform(shape, {.dtype = dtype, .low = -1, .high = 3, .seed = 1});
        const Tensor residual = uniform(shape, {.dtype = dtype, .seed = 2});
        const Tensor weight = uniform({shape.back()}, {.dtype = dtype, .seed = 3});
        const Tensor bias = uniform({shape.back()}, {.dtype = dtype, .seed = 4});
        const Tensor dout = uniform(shape, {.dtype = dtype, .seed = 5});
        const Tensor dsum = uniform(shape, {.dtype = dtype, .seed = 6});
        const Tensor s = variant.add ? x + residual : x;
        // The reference has roundings of its own, as many as the naive sums are long.
        const double unit = dtype == DType::f64 ? 4 * 0x1p-53 : 0x1p-24;
        Reference expected = reference(variant.centered, s, weight, bias, dout, unit);
        if (variant.add) {
          const std::vector<double> more = dsum.to_vector<double>();
          for (std::size_t i = 0; i < more.size(); ++i) {
            expected.dx.value[i] += more[i];
            expected.dx.tolerance[i] += unit * std::fabs(expected.dx.value[i]);
          }
        }
        for (Values* values : {&expected.y, &expected.dx, &expected.dweight, &expected.dbias}) {
          values->add_rounding(dtype);
        }
        for (Layout layout : kLayouts) {
          SCOPED_TRACE(fmt::format("centered {} add {} {} {} {}", variant.centered, variant.add,
                                   name_of(dtype), shape, name_of(layout)));
          Tensor in = in_layout(x, layout).set_requires_grad(true);
          Tensor res = in_layout(residual, layout).set_requires_grad(true);
          Tensor w = in_layout(weight, layout).set_requires_grad(true);
          Tensor b = in_layout(bias, layout).set_requires_grad(true);
          const AddNormResult result = variant.run(in, res, w, b);
          EXPECT_TRUE(near_each(result.normed, expected.y.value, expected.y.tolerance));
          const Tensor d = in_layout(dout, layout), ds = in_layout(dsum, layout);
          if (variant.add) {
            EXPECT_TRUE(equal_bits(result.sum.detach(), s));
            autograd::backward(std::vector{result.normed, result.sum}, std::vector{d, ds});
            EXPECT_TRUE(equal_bits(in.grad(), res.grad()));
          } else {
            result.normed.backward(d);
          }
          EXPECT_TRUE(near_each(in.grad(), expected.dx.value, expected.dx.tolerance));
          EXPECT_TRUE(near_each(w.grad(), expected.dweight.value, expected.dweight.tolerance));
          if (variant.centered) {
            EXPECT_TRUE(near_each(b.grad(), expected.dbias.value, expected.dbias.tolerance));
          }
        }
      }
    }
  }
}

TEST(Norm, GradientsMatchDifferences) {
  const auto u = [](const Shape& shape, std::uint64_t seed) {
    return uniform(shape, {.dtype = DType::f64, .seed = seed});
  };
  for (const Shape& shape : {Shape{7}, Shape{3, 5}, Shape{2, 20, 4}}) {
    const Tensor x = u(shape, 1), residual = u(shape, 2), weight = u({shape.back()}, 3),
                 bias = u({shape.back()}, 4);
    EXPECT_TRUE(
        gradients_match([](Inputs in) { return layer_norm(in[0], in[1], in[2]); }, {x, weight, bias}));
    EXPECT_TRUE(gradients_match([](Inputs in) { return layer_norm(in[0]); }, {x}));
    EXPECT_TRUE(gradients_match([](Inputs in) { return rms_norm(in[0], in[1]); }, {x, weight}));
    // Both outputs are used, and the sum alone.
    const auto both = [](const AddNormResult& result) { return cat({result.normed, result.sum * 3.0}, 0); };
    EXPECT_TRUE(gradients_match([&](Inputs in) { return both(add_layer_norm(in[0], in[1], in[2], in[3])); },
                                {x, residual, weight, bias}));
    EXPECT_TRUE(gradients_match([&](Inputs in) { return both(add_rms_norm(in[0], in[1], in[2])); },
                                {x, residual, weight}));
    EXPECT_TRUE(gradients_match([&](Inputs in) { return add_rms_norm(in[0], in[1]).sum; }, {x, residual}));
    EXPECT_TRUE(
        gradients_match([&](Inputs in) { return add_layer_norm(in[0], in[1]).normed; }, {x, residual}));
  }
}

// Half precision with the fp32 weights of a mixed-precision model.
TEST(Norm, HalfPrecisionTakesFp32Weights) {
  const Tensor x = uniform({9, 50}, {.dtype = DType::bf16});
  Tensor weight = uniform({50}, {.seed = 2}).set_requires_grad(true), bias = uniform({50}, {.seed = 3});
  const Tensor y = layer_norm(x, weight, bias);
  EXPECT_EQ(y.dtype(), DType::bf16);
  EXPECT_TRUE(near(y.detach(), layer_norm(x.to(DType::f32), weight.detach(), bias),
                   {.rtol = 1.01 * unit_roundoff(DType::bf16), .atol = 1e-6}));
  y.backward(ones(y.shape(), y.options()));
  EXPECT_EQ(weight.grad().dtype(), DType::f32);
}

// The sums over rows do not depend on the number of threads.
TEST(Norm, ResultsAreTheSameBitsForAnyNumberOfThreads) {
  const Tensor x = uniform({1000, 96}), dout = uniform({1000, 96}, {.seed = 2});
  const auto run = [&] {
    Tensor in = x.clone().set_requires_grad(true), w = ones({96}, x.options()).set_requires_grad(true);
    Tensor b = zeros({96}, x.options()).set_requires_grad(true);
    const Tensor y = layer_norm(in, w, b);
    y.backward(dout);
    return std::vector{y.detach(), in.grad(), w.grad(), b.grad()};
  };
  const std::vector<Tensor> expected = with_threads(1, run);
  for (int threads : {2, 3, 7}) {
    const std::vector<Tensor> got = with_threads(threads, run);
    for (std::size_t i = 0; i < got.size(); ++i)
      EXPECT_TRUE(equal_bits(got[i], expected[i])) << threads << " " << i;
  }
}

TEST(Norm, LargeOffsetsKeepTheVariance) {
  // Mean 4096, variance 1: the difference of E[x^2] and E[x]^2 would have lost it.
  const Tensor x = from_vector(std::vector<float>{4095, 4097, 4095, 4097}, {4}, {.device = device()});
  EXPECT_TRUE(near(layer_norm(x, {}, {}, 0), std::vector<double>{-1, 1, -1, 1}));
}

TEST(Norm, ErrorsNameOpAndShapes) {
  const Tensor x = zeros({2, 3, 64});
  EXPECT_EQ(error_of([&] { layer_norm(x, zeros({65})); }),
            "[layer_norm] x (2, 3, 64) and weight (65,): expected weight of shape (64,)");
  EXPECT_EQ(error_of([&] {
              rms_norm(x, zeros({1, 64}));
            }),
            "[rms_norm] x (2, 3, 64) and weight (1, 64): expected weight of shape (64,)");
  EXPECT_EQ(error_of([&] { layer_norm(x, {}, zeros({64}, {DType::bf16})); }),
            "[layer_norm] x is f32, bias is bf16: expected x's dtype");
  EXPECT_EQ(error_of([&] { layer_norm(x.to(DType::bf16), zeros({64}, {DType::f16})); }),
            "[layer_norm] x is bf16, weight is f16: expected x's dtype or f32");
  EXPECT_EQ(error_of([&] {
              add_rms_norm(x, zeros({2, 3, 1}));
            }),
            "[add_rms_norm] x (2, 3, 64) f32 and residual (2, 3, 1) f32: shapes and dtypes must be equal");
  EXPECT_EQ(error_of([&] { add_layer_norm(x, {}); }), "[add_layer_norm] the residual is undefined");
  EXPECT_EQ(error_of([&] { layer_norm(x, {}, {}, -1); }),
            "[layer_norm] eps -1: expected a number that is not negative");
  EXPECT_EQ(error_of([&] {
              rms_norm(zeros({3, 0}));
            }),
            "[rms_norm] x (3, 0): expected at least one dimension, the last not empty");
  EXPECT_EQ(error_of([&] { rms_norm(zeros({3}, {DType::i32})); }),
            "[rms_norm] x is i32: expected one of f32, bf16, f16, f64");
}

}  // namespace
}  // namespace ergon::ops
