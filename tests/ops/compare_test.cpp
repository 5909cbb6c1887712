#include "ops/compare.h"

#include <limits>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "tests/support/reference.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

struct Comparison {
  const char* name;
  Tensor (*op)(const Tensor&, const Tensor&);
  Tensor (*with_scalar)(const Tensor&, Scalar);
  bool (*reference)(double, double);
};

const Comparison kComparisons[] = {
    {"eq", eq, eq, [](double a, double b) { return a == b; }},
    {"ne", ne, ne, [](double a, double b) { return a != b; }},
    {"lt", lt, lt, [](double a, double b) { return a < b; }},
    {"le", le, le, [](double a, double b) { return a <= b; }},
    {"gt", gt, gt, [](double a, double b) { return a > b; }},
    {"ge", ge, ge, [](double a, double b) { return a >= b; }},
};

TEST(Compare, EveryDtypeLayoutAndBroadcast) {
  for (const Comparison& comparison : kComparisons) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i8, DType::i64}) {
      for (Layout layout : kLayouts) {
        const Tensor a = in_layout(integers({33, 40}, {.dtype = dtype, .low = -3, .high = 3}), layout);
        const Tensor b = in_layout(integers({40}, {.dtype = dtype, .low = -3, .high = 3, .seed = 2}), layout);
        const auto expected =
            map(a, b, [&](double x, double y) { return comparison.reference(x, y) ? 1.0 : 0.0; });
        const Tensor y = comparison.op(a, b);
        EXPECT_EQ(y.dtype(), DType::boolean);
        EXPECT_TRUE(near(y, expected)) << comparison.name << " " << name_of(layout);
        const auto expected_one = map(a, [&](double x) { return comparison.reference(x, 1) ? 1.0 : 0.0; });
        EXPECT_TRUE(near(comparison.with_scalar(a, 1), expected_one)) << comparison.name;
      }
    }
  }
}

TEST(Compare, NanAndLargeIntegers) {
  const Tensor nan = full({1}, std::numeric_limits<double>::quiet_NaN(), {.device = device()});
  EXPECT_FALSE(eq(nan, nan).item<bool>());
  EXPECT_TRUE(ne(nan, nan).item<bool>());
  EXPECT_FALSE(le(nan, 1).item<bool>());
  const std::int64_t big = (std::int64_t{1} << 53) + 1;
  EXPECT_FALSE(eq(from_vector<std::int64_t>({big}, {1}, {DType::i64, device()}), big - 1).item<bool>());
  EXPECT_TRUE(gt(from_vector<std::int64_t>({big}, {1}, {DType::i64, device()}), big - 1).item<bool>());
}

TEST(Where, ChoosesInEveryDtypeAndLayout) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::boolean}) {
    for (Layout layout : kLayouts) {
      const Tensor condition = in_layout(uniform({4, 1, 33}, {.dtype = DType::boolean, .seed = 9}), layout);
      const Tensor a = in_layout(uniform({5, 33}, {.dtype = dtype}), layout),
                   b = uniform({33}, {.dtype = dtype, .seed = 2});
      const Tensor y = where(condition, a, b);
      const Shape shape{4, 5, 33};
      ASSERT_EQ(y.shape(), shape);
      EXPECT_EQ(y.dtype(), dtype);
      const std::vector<double> c = condition.expand(shape).to_vector<double>(),
                                left = a.expand(shape).to_vector<double>(),
                                right = b.expand(shape).to_vector<double>();
      std::vector<double> expected(c.size());
      for (std::size_t i = 0; i < c.size(); ++i) expected[i] = c[i] != 0 ? left[i] : right[i];
      EXPECT_TRUE(near(y, expected)) << name_of(layout);
    }
  }
}

TEST(Where, ScalarsAndTheValuesNotChosen) {
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor condition = from_vector<bool>({true, false, true}, {3}, {DType::boolean, device()});
  const Tensor x =
      from_vector<double>({1, std::numeric_limits<double>::quiet_NaN(), 3}, {3}, {DType::bf16, device()});
  EXPECT_TRUE(near(where(condition, x, -inf), std::vector<double>{1, -inf, 3}));
  EXPECT_TRUE(near(where(condition, 7, full({3}, 2, {.device = device()})), std::vector<double>{7, 2, 7}));
  EXPECT_EQ(where(condition, x, -inf).dtype(), DType::bf16);
}

TEST(Where, GradientsMatchDifferences) {
  const Tensor condition = uniform({2, 3, 4}, {.dtype = DType::boolean});
  EXPECT_TRUE(
      gradients_match([&](Inputs in) { return where(condition, in[0], in[1]) + where(condition, in[0], 2); },
                      {uniform({3, 1}, {.dtype = DType::f64}), uniform({4}, {.dtype = DType::f64})}));
}

TEST(Where, Errors) {
  EXPECT_EQ(error_of([] {
              where(zeros({2}, {.device = device()}), zeros({2}, {.device = device()}),
                    zeros({2}, {.device = device()}));
            }),
            "[where] condition has dtype f32: expected bool");
  EXPECT_NE(error_of([] {
              where(zeros({2}, {DType::boolean, device()}), zeros({3}, {.device = device()}), 1);
            }).find("[where] "),
            std::string::npos);
}

}  // namespace
}  // namespace ergon::ops
