#include "kernels/dynamic_code.h"

#include <cmath>

#include <gtest/gtest.h>

namespace ergon::kernels {
namespace {

// Half an interval of the decade that `magnitude` lies in; both decades' at an edge, which fp32 blurs. The
// position among the intervals, below 2^8, has four roundings in fp32, together at most 2^-14 of an interval.
double bound(double magnitude, int top) {
  double n = top, unit = 1;
  for (int e = 0; e < 6 && magnitude < 0.1 * unit * (1 - 1e-6); ++e) {
    n /= 2;
    unit *= 0.1;
  }
  return std::max(0.45 / n * unit, 1e-7) * (1 + 0x1p-13);
}

template <bool kSigned>
void check_all() {
  using Code = DynamicCode<kSigned>;
  constexpr auto values = Code::values();
  for (int code = 0; code < 256; ++code) {
    const auto value = values[static_cast<std::size_t>(code)];
    if (code > 0) {
      EXPECT_GT(value, values[static_cast<std::size_t>(code) - 1]);
    }
    EXPECT_EQ(Code::encode(value), code) << value;
  }
  EXPECT_EQ(values[255], 1.0f);
  EXPECT_EQ(values[Code::kZero], 0.0f);
  double worst = 0;
  for (double x = 1; x > 1e-9; x *= 0.9997) {
    for (const double sign : {1.0, -1.0}) {
      if (!kSigned && sign < 0) continue;
      const auto exact = static_cast<float>(sign * x);
      const double error = std::abs(values[static_cast<std::size_t>(Code::encode(exact))] - exact);
      // Below the lowest decade an unsigned number takes the lowest code, 3.25e-7.
      const double allowed = !kSigned && x < 1e-7 ? 3.25e-7 : bound(x, Code::kTop);
      ASSERT_LE(error, allowed) << exact;
      worst = std::max(worst, error);
    }
  }
  EXPECT_GT(worst, 0.44 / Code::kTop);  // the bound is reached
  EXPECT_EQ(Code::encode(0), Code::kZero);
}

TEST(DynamicCode, SignedCodesAreOrderedAndWithinHalfAnInterval) {
  check_all<true>();
  EXPECT_EQ(DynamicCode<true>::encode(-1), 0);
}

TEST(DynamicCode, UnsignedCodesAreOrderedAndWithinHalfAnInterval) {
  check_all<false>();
  EXPECT_EQ(DynamicCode<false>::encode(1e-30f), 1);
}

// Against values that are written down: the first two decades' ends as the definition gives them.
TEST(DynamicCode, HasTheValuesOfItsDefinition) {
  constexpr auto values = DynamicCode<false>::values();
  EXPECT_FLOAT_EQ(values[1], 1e-6f * 0.325f);
  EXPECT_FLOAT_EQ(values[2], 1e-6f * 0.775f);
  EXPECT_FLOAT_EQ(values[127], 0.1f + 0.9f * 0.5f / 128);
  EXPECT_FLOAT_EQ(values[126], 0.1f * (1 - 0.9f * 0.5f / 64));
  constexpr auto signed_values = DynamicCode<true>::values();
  EXPECT_FLOAT_EQ(signed_values[128], 1e-6f * 0.55f);
  EXPECT_FLOAT_EQ(signed_values[0], -(1 - 0.9f * 0.5f / 64));
}

}  // namespace
}  // namespace ergon::kernels
