#include "ops/numerics.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "tests/support/reference.h"

namespace ergon {
namespace {

// Values of every size there is in f32, zeros, infinities and NaN.
Tensor mixed(std::int64_t count, DType dtype) {
  const std::vector<double> exponents =
      test::uniform({count}, {.dtype = DType::f64, .low = -45, .high = 38}).to_vector<double>();
  std::vector<double> values;
  for (std::size_t i = 0; i < exponents.size(); ++i) {
    constexpr double kSpecial[] = {0, -0.0, std::numeric_limits<double>::infinity(),
                                   -std::numeric_limits<double>::infinity(),
                                   std::numeric_limits<double>::quiet_NaN()};
    values.push_back(i % 7 == 3 ? kSpecial[i / 7 % 5] : std::pow(10, exponents[i]) * (i % 2 == 0 ? 1 : -1));
  }
  return from_vector(values, {count}, {dtype, test::device()});
}

ops::NumericsSummary expected_of(const std::vector<float>& values, double smallest, double largest) {
  ops::NumericsSummary s;
  double nonzero = 0, underflow = 0, overflow = 0;
  for (const float value : values) {
    const double magnitude = std::abs(static_cast<double>(value));
    s.nan += std::isnan(magnitude);
    s.infinite += std::isinf(magnitude);
    if (!std::isfinite(magnitude) || magnitude == 0) continue;
    ++nonzero;
    s.amax = std::max(s.amax, magnitude);
    underflow += magnitude < smallest;
    overflow += magnitude > largest;
  }
  s.underflow = underflow / std::max(nonzero, 1.0);
  s.overflow = overflow / std::max(nonzero, 1.0);
  return s;
}

void expect_same(const ops::NumericsSummary& got, const ops::NumericsSummary& expected) {
  EXPECT_EQ(got.amax, expected.amax);
  EXPECT_EQ(got.underflow, expected.underflow);
  EXPECT_EQ(got.overflow, expected.overflow);
  EXPECT_EQ(got.infinite, expected.infinite);
  EXPECT_EQ(got.nan, expected.nan);
}

TEST(Numerics, CountsAreExactInEveryDtypeAndSlot) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const DType target : {DType::f16, DType::bf16}) {
      ops::NumericsCounter counter(3, target, test::device());
      const double smallest = target == DType::f16 ? 0x1p-14 : 0x1p-126,
                   largest = target == DType::f16 ? 65504 : std::ldexp(2 - 0x1p-7, 127);
      for (const std::int64_t count : {1, 33, 20000}) {
        const Tensor x = mixed(count, dtype);
        counter.add(1, x);
        counter.add(2, x.slice(0, count / 3, count));  // misaligned
        const std::vector<float> values = x.to_vector<float>();
        const std::vector<ops::NumericsSummary> got = counter.take();
        ASSERT_EQ(got.size(), 3u);
        expect_same(got[0], {});
        expect_same(got[1], expected_of(values, smallest, largest));
        expect_same(got[2], expected_of({values.begin() + count / 3, values.end()}, smallest, largest));
      }
    }
  }
}

TEST(Numerics, SlotsAddUpAndStartAgain) {
  ops::NumericsCounter counter(1, DType::f16, test::device());
  const std::vector<float> first{1, 1e-6f, 0, 1e6f}, second{-3, 1e-6f};
  counter.add(0, from_vector(first, {2, 2}, {.device = test::device()}).transpose(0, 1));
  counter.add(0, from_vector(second, {2}, {.device = test::device()}));
  expect_same(counter.take()[0], {.amax = 1e6f, .underflow = 2.0 / 5, .overflow = 1.0 / 5});
  expect_same(counter.take()[0], {});
}

TEST(Numerics, ErrorsNameTheDtype) {
  EXPECT_EQ(test::error_of([] { ops::NumericsCounter(1, DType::f32, test::device()); }),
            "[numerics] dtype f32: expected bf16 or f16");
  ops::NumericsCounter counter(1, DType::f16, test::device());
  EXPECT_EQ(test::error_of([&] { counter.add(0, test::integers({3}, {.dtype = DType::i64})); }),
            "[numerics] dtype i64: expected floating point");
}

}  // namespace
}  // namespace ergon
