#include "kernels/cpu/half_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "core/convert.h"

namespace ergon::kernels::cpu {
namespace {

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double twice_u(double x) { return 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }
double slope_of_twice_u(double x) { return 2 * std::sqrt(2 / M_PI) * (1 + 0.134145 * x * x); }
double tail_of(double x) { return 0.5 * std::erfc(std::fabs(x) / std::sqrt(2.0)); }
double density_of(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI); }

struct Case {
  const char* name;
  Vec<float> (*function)(Vec<float>);
  double (*reference)(double);
  double relative;          // of the result, or of scale(x) if there is one
  double (*scale)(double);  // not null: what the error is relative to
  double low;               // where that holds from; below, results lie between 0 and `below`
  double (*below)(double);
  double extra = 0;  // of Phi(-|x|)
};

const Case kCases[] = {
    {"exp2", half_exp2, std::exp2, 0x1p-18, nullptr, -126, [](double) { return 0x1p-126; }},
    {"exp", half_exp, std::exp, 0x1p-17, nullptr, -87, [](double) { return 1.7e-38; }},
    {"sigmoid", half_sigmoid, sigmoid_of, 0x1p-16, nullptr, -87, [](double) { return 1.7e-38; }},
    {"silu", half_silu, [](double x) { return x * sigmoid_of(x); }, 0x1p-16, nullptr, -87,
     [](double x) { return 1.7e-38 * x; }},
    {"gelu_tanh", half_gelu_tanh, [](double x) { return x * sigmoid_of(twice_u(x)); }, 0x1p-15, nullptr, -8,
     [](double) { return -3.2e-21; }},
    {"gelu_erf", half_gelu_erf, [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }, 0x1p-16,
     nullptr, -5.7, [](double) { return -3.5e-8; }},
    {"silu_grad", half_silu_grad, [](double x) { return sigmoid_of(x) * (1 + x * sigmoid_of(-x)); }, 0x1p-15,
     [](double x) { return sigmoid_of(x) * (1 + std::fabs(x) * sigmoid_of(-x)); }, -87,
     [](double x) { return 1.7e-38 * x; }},
    {"gelu_tanh_grad", half_gelu_tanh_grad,
     [](double x) {
       const double s = sigmoid_of(twice_u(x));
       return s + x * slope_of_twice_u(x) * s * sigmoid_of(-twice_u(x));
     },
     0x1p-15,
     [](double x) {
       const double s = sigmoid_of(twice_u(x));
       return s + std::fabs(x) * slope_of_twice_u(x) * s * sigmoid_of(-twice_u(x));
     },
     -8, [](double) { return -1e-19; }},
    {"gelu_erf_grad", half_gelu_erf_grad,
     [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * density_of(x); }, 0x1p-15, nullptr,
     -5.7, [](double) { return -2.1e-7; }, 0x1p-20},
};

class HalfMath : public testing::TestWithParam<Case> {};

// Every bf16 and every f16 as the argument, the result before it is rounded.
template <class Half>
void expect_documented_errors(const Case& c) {
  for (std::uint32_t bits = 0; bits < 65536; bits += kLanes<float>) {
    Vec<float> x;
    for (int i = 0; i < kLanes<float>; ++i) {
      x[i] = static_cast<float>(
          std::bit_cast<Half>(static_cast<std::uint16_t>(bits + static_cast<std::uint32_t>(i))));
    }
    const Vec<float> got = c.function(x);
    for (int i = 0; i < kLanes<float>; ++i) {
      const double at = x[i], expected = c.reference(at), value = got[i];
      if (std::isnan(at)) {
        ASSERT_TRUE(std::isnan(value)) << c.name;
      } else if (at < c.low) {
        const double limit = c.below(at);  // infinite arguments: 0 times infinity may be NaN
        ASSERT_TRUE(std::isinf(at) || (value >= std::min(limit, 0.0) && value <= std::max(limit, 0.0)))
            << c.name << "(" << at << ") = " << value;
      } else if (std::isfinite(expected) && std::isfinite(static_cast<float>(expected))) {
        const double size = c.scale == nullptr ? std::fabs(expected) : c.scale(at);
        const double allowed = c.relative * size + c.extra * tail_of(at);
        ASSERT_TRUE(std::fabs(value - expected) <= allowed)
            << c.name << "(" << at << ") = " << value << ", expected " << expected << " within " << allowed;
      }
    }
  }
}

TEST_P(HalfMath, StaysWithinTheDocumentedErrorForEveryHalf) {
  expect_documented_errors<bf16>(GetParam());
  expect_documented_errors<f16>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Functions, HalfMath, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(HalfMathSpecialValues, OneZeroAndInfinity) {
  const auto at = [](float x) { return Vec<float>{} + x; };
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(half_exp(at(0))[0], 1.0f);
  EXPECT_EQ(half_exp(at(-inf))[0], 0.0f);
  EXPECT_EQ(half_exp(at(inf))[0], inf);
  EXPECT_EQ(half_exp(at(89))[0], inf);
  EXPECT_EQ(half_exp(at(-200))[0], 0.0f);
  EXPECT_EQ(half_exp2(at(128))[0], inf);
  EXPECT_EQ(half_sigmoid(at(0))[0], 0.5f);
  EXPECT_EQ(half_sigmoid(at(-inf))[0], 0.0f);
  EXPECT_EQ(half_sigmoid(at(inf))[0], 1.0f);
  EXPECT_EQ(half_gelu_erf(at(inf))[0], inf);
  EXPECT_EQ(half_gelu_erf(at(-60000))[0], 0.0f);
  EXPECT_EQ(half_gelu_erf_grad(at(inf))[0], 1.0f);
}

}  // namespace
}  // namespace ergon::kernels::cpu
