#include "ops/activation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "tests/support/reference.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double gelu_tanh_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

struct Function {
  const char* name;
  Tensor (*op)(const Tensor&);
  double (*reference)(double);
  double ulps;          // of the fp32 result: the larger of what the CPU's and CUDA's contracts promise
  double low, high;     // where it is tested
  bool scaled = false;  // the error is relative to the larger of |result| and |x|
};

const Function kFunctions[] = {
    {"exp", exp, std::exp, 2, -10, 10},
    {"log", log, std::log, 1, 1e-3, 50},
    {"sqrt", sqrt, std::sqrt, 0.5, 0.01, 50},
    {"rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 1.5, 0.01, 50},
    {"sin", sin, std::sin, 2, -10, 10},
    {"cos", cos, std::cos, 2, -10, 10},
    {"abs", abs, std::fabs, 0, -5, 5},
    {"square", square, [](double x) { return x * x; }, 0.5, -5, 5},
    {"tanh", tanh, std::tanh, 2.7, -10, 10},
    {"sigmoid", sigmoid, sigmoid_of, 3, -20, 20},
    {"relu", relu, [](double x) { return std::fmax(x, 0); }, 0, -5, 5},
    {"silu", silu, [](double x) { return x * sigmoid_of(x); }, 4, -20, 20},
    {"gelu_erf", [](const Tensor& x) { return gelu(x); }, [](double x) { return x * normal_cdf(x); }, 4, -10,
     10, true},
    {"gelu_tanh", [](const Tensor& x) { return gelu(x, GeluForm::tanh); }, gelu_tanh_of, 4, -10, 10, true},
};

// ulps of the fp32 computation, or, for halves, what half_math.h is within; then the rounding to the dtype.
// fp64 is libm's, with a few roundings.
std::vector<double> tolerances(const Function& function, DType dtype, const std::vector<double>& x,
                               const std::vector<double>& expected) {
  const double compute = dtype == DType::f64 ? 8 * 0x1p-53 : function.ulps * 0x1p-23;
  std::vector<double> result(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double size = std::fabs(expected[i]);
    result[i] = compute * (function.scaled ? std::max(size, std::fabs(x[i])) : size) + underflow_error(dtype);
    if (is_half(dtype)) result[i] += (1.01 * unit_roundoff(dtype) + 0x1p-15) * size;
  }
  return result;
}

class Functions : public testing::TestWithParam<Function> {};

TEST_P(Functions, MatchesFp64InEveryDtypeAndLayout) {
  const Function& f = GetParam();
  for (DType dtype : kFloatingDTypes) {
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{31}, Shape{33}, Shape{33, 65},
                               Shape{2, 3, 700}, Shape{40, 1000}}) {
      const Tensor values = uniform(shape, {.dtype = dtype, .low = f.low, .high = f.high});
      const std::vector<double> expected = map(values, f.reference);
      const std::vector<double> allowed = tolerances(f, dtype, values.to_vector<double>(), expected);
      for (Layout layout : kLayouts) {
        const Tensor y = f.op(in_layout(values, layout));
        EXPECT_EQ(y.dtype(), dtype);
        EXPECT_EQ(y.shape(), shape);
        EXPECT_TRUE(near_each(y, expected, allowed)) << name_of(layout);
      }
    }
  }
}

TEST_P(Functions, GradientsMatchDifferences) {
  const Function& f = GetParam();
  Tensor x =
      uniform({3, 4, 5}, {.dtype = DType::f64, .low = std::max(f.low, -3.0), .high = std::min(f.high, 3.0)});
  if (f.low > 0) x = uniform({3, 4, 5}, {.dtype = DType::f64, .low = 0.1, .high = 3});
  EXPECT_TRUE(gradients_match([&](Inputs in) { return f.op(in[0]); }, {x}));
}

// The kernels of the gradients in fp32 and halves against fp64 ones, which the test above has checked.
TEST_P(Functions, GradientsInEveryDtypeAndLayout) {
  const Function& f = GetParam();
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const double low = f.low > 0 ? 0.1 : -3;
    const Tensor values = uniform({7, 33}, {.dtype = dtype, .low = low, .high = 3});
    const Tensor grad_output = uniform({7, 33}, {.dtype = dtype, .low = 0.5, .seed = 2});
    const auto gradient = [&](const Tensor& at, const Tensor& weights) {
      Tensor x = at;
      x.set_requires_grad(true);
      f.op(x).backward(weights);
      return x.grad();
    };
    const std::vector<double> expected =
        gradient(values.to(DType::f64), grad_output.to(DType::f64)).to_vector<double>();
    const std::vector<double> y = map(values, f.reference);
    std::vector<double> allowed(expected.size());
    for (std::size_t i = 0; i < allowed.size(); ++i) {
      // Roundings of the factors, all below 4 in size and multiplied at most three times; what was saved of
      // the result is rounded to the dtype, which the derivatives below magnify by up to 4 |y| + 4 |y|^3.
      // Halves: half_math.h's derivatives, whose terms are below 2 in size.
      const double saved = unit_roundoff(dtype) * (4 * std::fabs(y[i]) + 4 * std::pow(std::fabs(y[i]), 3));
      allowed[i] = 2 * (saved + unit_roundoff(dtype) * std::fabs(expected[i]) + 32 * 0x1p-24);
      allowed[i] += underflow_error(dtype) + (is_half(dtype) ? 2 * 0x1p-15 : 0);
    }
    for (Layout layout : kLayouts) {
      const Tensor got = gradient(in_layout(values, layout), in_layout(grad_output, layout));
      EXPECT_EQ(got.dtype(), dtype);
      EXPECT_TRUE(near_each(got, expected, allowed)) << ergon::name_of(dtype) << " " << name_of(layout);
    }
  }
}

TEST_P(Functions, NanReachesTheResult) {
  const Tensor x = full({40}, std::numeric_limits<double>::quiet_NaN(), {.device = device()});
  for (const float value : GetParam().op(x).to_vector<float>()) EXPECT_TRUE(std::isnan(value));
}

INSTANTIATE_TEST_SUITE_P(Ops, Functions, testing::ValuesIn(kFunctions),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Activation, IntegersGiveF32ExceptWhereTheyStay) {
  const Tensor n = from_vector<double>({-3, 0, 2}, {3}, {DType::i32, device()});
  EXPECT_EQ(exp(n).dtype(), DType::f32);
  EXPECT_EQ(abs(n).to_vector<std::int64_t>(), (std::vector<std::int64_t>{3, 0, 2}));
  EXPECT_EQ(square(n).dtype(), DType::i32);
}

TEST(Activation, GradientsAtKinksAndInfinities) {
  Tensor x = zeros({1}, {DType::f32, device(), true});
  relu(x).backward();
  EXPECT_EQ(x.grad().item<float>(), 0);
  abs(x).backward();
  EXPECT_EQ(x.grad().item<float>(), 0);
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor ends = from_vector<double>({-inf, inf}, {2}, {DType::f32, device()});
  EXPECT_TRUE(near(tanh(ends), std::vector<double>{-1, 1}));
  EXPECT_TRUE(near(sigmoid(ends), std::vector<double>{0, 1}));
  EXPECT_TRUE(near(exp(ends), std::vector<double>{0, inf}));
}

TEST(Activation, WhatOnlyNeedsItsResultLetsTheArgumentChange) {
  for (const bool keeps_result : {true, false}) {
    Tensor x = uniform({5}, {.dtype = DType::f64, .low = 0.5});
    x.set_requires_grad(true);
    Tensor hidden = square(x);
    const Tensor y = keeps_result ? sqrt(hidden) : log(hidden);
    {
      NoGradGuard no_grad;
      hidden.fill_(3);
    }
    const std::string error = error_of([&] { y.backward(ones({5}, {DType::f64, device()})); });
    if (keeps_result) {
      EXPECT_EQ(error, "no error");
      EXPECT_TRUE(near(x.grad(), ones({5}, {DType::f64, device()}), {.rtol = 0x1p-50}));
    } else {
      EXPECT_NE(error.find("was changed in place"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace ergon::ops
