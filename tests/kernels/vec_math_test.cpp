#include "kernels/cpu/vec_math.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/activations.h"

namespace ergon::kernels::cpu {
namespace {

struct Case {
  const char* name;
  float (*function)(float);
  double (*reference)(double);
  double max_ulp;  // as documented in vec_math.h
};

const Case kCases[] = {
    {"exp", [](float x) { return vexp(x); }, [](double x) { return std::exp(x); }, 1.1},
    {"exp_normal", [](float x) { return x >= 88 ? vexp(x) : vexp_normal(x); },
     [](double x) { return std::exp(x < -87 ? -87 : x); }, 1.1},
    {"exp2_or_zero", [](float x) { return vexp2_or_zero(x >= 127.5f ? 127.0f : x); },
     [](double x) { return x < -125 ? 0 : std::exp2(x >= 127.5 ? 127 : x); }, 1.1},
    {"expm1", [](float x) { return vexpm1(x); }, [](double x) { return std::expm1(x); }, 1.7},
    {"log", [](float x) { return vlog(x); }, [](double x) { return std::log(x); }, 0.9},
    {"tanh", [](float x) { return vtanh(x); }, [](double x) { return std::tanh(x); }, 2.7},
    {"sigmoid", [](float x) { return vsigmoid(x); },
     [](double x) { return x < -88 ? 0 : 1 / (1 + std::exp(-x)); }, 2.6},
    {"erf", [](float x) { return verf(x); }, [](double x) { return std::erf(x); }, 1.2},
};

// |got - reference| in units of the last place of the float nearest to reference.
double ulp_error(float got, double reference) {
  if (std::isnan(reference)) return std::isnan(got) ? 0 : INFINITY;
  const float rounded = static_cast<float>(reference);
  if (std::isinf(rounded)) return got == rounded ? 0 : INFINITY;
  if (!std::isfinite(got)) return INFINITY;
  int exponent = 0;
  std::frexp(rounded, &exponent);
  const double ulp = std::ldexp(1.0, rounded == 0 ? -149 : std::max(exponent - 24, -149));
  return std::fabs(got - reference) / ulp;
}

class VecMath : public testing::TestWithParam<Case> {};

TEST_P(VecMath, StaysWithinTheDocumentedErrorOverAllFloats) {
  const Case& c = GetParam();
  double worst = 0;
  float worst_at = 0;
  for (std::uint64_t bits = 0; bits < (1ull << 32);
       bits += 4093) {  // a prime: every mantissa pattern turns up
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const double error = ulp_error(c.function(x), c.reference(x));
    if (!(error <= worst)) worst = error, worst_at = x;
  }
  EXPECT_TRUE(worst <= c.max_ulp) << c.name << "(" << worst_at << ") = " << c.function(worst_at)
                                  << ", expected " << c.reference(worst_at) << ", " << worst << " ulp";
}

TEST_P(VecMath, StaysWithinTheDocumentedErrorNearOneAndZero) {
  const Case& c = GetParam();
  double worst = 0;
  float worst_at = 0;
  for (int i = -200000; i <= 200000; ++i) {
    const float x = static_cast<float>(i) * 1.00001e-5f;
    const double error = ulp_error(c.function(x), c.reference(x));
    if (!(error <= worst)) worst = error, worst_at = x;
  }
  EXPECT_TRUE(worst <= c.max_ulp) << c.name << "(" << worst_at << "): " << worst << " ulp";
}

// The loop is what users run; the tests above call one value at a time.
TEST_P(VecMath, VectorisedLoopStaysWithinTheDocumentedError) {
  const Case& c = GetParam();
  std::vector<float> x(1000), y(1000);
  for (int i = 0; i < 1000; ++i) x[i] = static_cast<float>(i - 500) * 0.037f;
  const std::string name = c.name;
  const auto loop = [&](auto f) {
    for (int i = 0; i < 1000; ++i) y[i] = f(x[i]);
  };
  if (name == "exp") loop([](float v) { return vexp(v); });
  if (name == "exp_normal") loop([](float v) { return vexp_normal(v); });
  if (name == "exp2_or_zero") loop([](float v) { return vexp2_or_zero(v); });
  if (name == "expm1") loop([](float v) { return vexpm1(v); });
  if (name == "log") loop([](float v) { return vlog(v); });
  if (name == "tanh") loop([](float v) { return vtanh(v); });
  if (name == "sigmoid") loop([](float v) { return vsigmoid(v); });
  if (name == "erf") loop([](float v) { return verf(v); });
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(ulp_error(y[i], c.reference(x[i])) <= c.max_ulp) << c.name << "(" << x[i] << ") = " << y[i];
  }
}

INSTANTIATE_TEST_SUITE_P(Functions, VecMath, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(VecMathSpecialValues, NanInfinityAndSignedZero) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Case& c : kCases) EXPECT_TRUE(std::isnan(c.function(nan))) << c.name;
  for (const auto f : {+[](float x) { return vexpm1(x); }, +[](float x) { return vtanh(x); },
                       +[](float x) { return verf(x); }}) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(f(-0.0f)), std::bit_cast<std::uint32_t>(-0.0f));
    EXPECT_EQ(std::bit_cast<std::uint32_t>(f(0.0f)), 0u);
  }
  EXPECT_EQ(vexp(0.0f), 1.0f);
  EXPECT_EQ(vexp(-INFINITY), 0.0f);
  EXPECT_EQ(vexp(INFINITY), INFINITY);
  EXPECT_EQ(vlog(1.0f), 0.0f);
  EXPECT_EQ(vlog(-0.0f), -INFINITY);
  EXPECT_TRUE(std::isnan(vlog(-1.0f)));
  EXPECT_EQ(vtanh(INFINITY), 1.0f);
  EXPECT_EQ(verf(-INFINITY), -1.0f);
  EXPECT_EQ(vsigmoid(-INFINITY), 0.0f);
  EXPECT_EQ(vsigmoid(INFINITY), 1.0f);
  EXPECT_EQ(vsigmoid(0.0f), 0.5f);
}

struct Activation {
  const char* name;
  float (*value)(float);
  float (*gradient)(float);
  double (*reference)(double);
};

TEST(Activations, ValuesAndGradientsMatchDoublePrecision) {
  const Activation activations[] = {
      {"silu", silu<float>, silu_grad<float>, [](double x) { return x / (1 + std::exp(-x)); }},
      {"gelu_erf", gelu_erf<float>, gelu_erf_grad<float>,
       [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }},
      {"gelu_tanh", gelu_tanh<float>, gelu_tanh_grad<float>,
       [](double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }},
  };
  for (const Activation& a : activations) {
    for (int i = -4000; i <= 4000; ++i) {
      const float x = static_cast<float>(i) * 0.0031f;
      const double reference = a.reference(x);
      // A few roundings relative to the larger of result and argument: 1 + erf(x) cancels for negative x.
      const double tolerance =
          4 * 0x1p-23 * std::max(std::fabs(reference), std::fabs(static_cast<double>(x)));
      EXPECT_TRUE(std::fabs(a.value(x) - reference) <= tolerance)
          << a.name << "(" << x << ") = " << a.value(x);
      const double h = 1e-5;
      const double slope = (a.reference(x + h) - a.reference(x - h)) / (2 * h);
      EXPECT_TRUE(std::fabs(a.gradient(x) - slope) <= 2e-6) << a.name << "'(" << x << ") = " << a.gradient(x);
    }
  }
  EXPECT_EQ(relu(-1.0f), 0.0f);
  EXPECT_EQ(relu(2.0f), 2.0f);
  EXPECT_TRUE(std::isnan(relu(NAN)));
}

}  // namespace
}  // namespace ergon::kernels::cpu
