#include "ops/softmax.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "tests/support/reference.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

struct Case {
  Shape shape;
  int dim;
};

const Case kCases[] = {
    {{}, 0},        {{1}, 0},       {{31}, 0},       {{33, 65}, 1},    {{33, 65}, 0},      {{3, 1025}, -1},
    {{2, 5000}, 1}, {{5000, 2}, 0}, {{4, 70, 9}, 1}, {{2, 3, 300}, 1}, {{2, 3, 4, 16}, 3}, {{0, 5}, 1},
    {{5, 0}, 1},    {{70, 300}, 0},
};

struct Reference {
  std::vector<double> value, log_value;
  std::vector<double> tolerance, log_tolerance;  // of fp32 arithmetic, as kernels/softmax.h states
};

Reference reference(const Tensor& x, int dim, double unit) {
  const double run =
      device().is_cpu() ? 32 : 8;  // of a sum's terms, n / run are added up one after the other
  const std::vector<double> v = x.to_vector<double>();
  Reference result{v, v, v, v};
  std::int64_t length = 1, inner = 1;
  if (x.dim() > 0) {
    length = x.size(dim);
    for (int i = wrap_dim(dim, x.dim(), "test") + 1; i < x.dim(); ++i) inner *= x.shape()[i];
  }
  for (std::size_t first = 0; first < v.size(); ++first) {
    const auto at = static_cast<std::int64_t>(first);
    if (at / inner % length != 0) continue;
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    const auto element = [&](std::int64_t k) { return static_cast<std::size_t>(at + k * inner); };
    for (std::int64_t k = 0; k < length; ++k) max = std::max(max, v[element(k)]);
    for (std::int64_t k = 0; k < length; ++k) sum += std::exp(v[element(k)] - max);
    for (std::int64_t k = 0; k < length; ++k) {
      const std::size_t i = element(k);
      result.value[i] = std::exp(v[i] - max) / sum;
      result.log_value[i] = v[i] - max - std::log(sum);
      const double n = static_cast<double>(length), extra = 40 + std::log2(n) + n / run;
      result.tolerance[i] = unit * result.value[i] * (max - v[i] + std::log(n) + extra);
      result.log_tolerance[i] = unit * (2 * (max - v[i]) + 3 * std::log(n) + extra);
    }
  }
  return result;
}

void add_rounding(std::vector<double>& tolerance, const std::vector<double>& value, DType dtype) {
  for (std::size_t i = 0; i < value.size(); ++i) {
    tolerance[i] += 1.01 * unit_roundoff(dtype) * std::fabs(value[i]) + underflow_error(dtype);
  }
}

TEST(Softmax, MatchesFp64InEveryDtypeLayoutAndDimension) {
  for (DType dtype : kFloatingDTypes) {
    for (const Case& c : kCases) {
      const Tensor x = uniform(c.shape, {.dtype = dtype, .low = -8, .high = 8});
      // The fp64 reference adds up naively, with an error of its own of length roundings.
      const double unit = dtype == DType::f64 ? 64 * 0x1p-53 : 0x1p-24;
      Reference expected = reference(x, c.dim, unit);
      if (is_half(dtype)) {  // exponentials within 2^-17, and so their sum
        for (std::size_t i = 0; i < expected.value.size(); ++i) {
          expected.tolerance[i] += 0x1p-16 * expected.value[i];
          expected.log_tolerance[i] += 0x1p-17;
        }
      }
      add_rounding(expected.tolerance, expected.value, dtype);
      add_rounding(expected.log_tolerance, expected.log_value, dtype);
      for (Layout layout : kLayouts) {
        const Tensor in = in_layout(x, layout);
        EXPECT_TRUE(near_each(softmax(in, c.dim), expected.value, expected.tolerance))
            << to_string(c.shape) << c.dim << name_of(layout);
        EXPECT_TRUE(near_each(log_softmax(in, c.dim), expected.log_value, expected.log_tolerance))
            << to_string(c.shape) << c.dim << name_of(layout);
      }
    }
  }
}

TEST(Softmax, GradientsMatchDifferences) {
  for (const Case& c : {Case{{5}, 0}, {{3, 4}, 1}, {{3, 4}, 0}, {{2, 3, 4}, 1}, {{}, 0}, {{1, 6}, 0}}) {
    const Tensor x = uniform(c.shape, {.dtype = DType::f64});
    EXPECT_TRUE(gradients_match([&](Inputs in) { return softmax(in[0], c.dim); }, {x})) << to_string(c.shape);
    EXPECT_TRUE(gradients_match([&](Inputs in) { return log_softmax(in[0], c.dim); }, {x}))
        << to_string(c.shape);
  }
}

TEST(Softmax, GradientsInEveryDtypeMatchFp64) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const Case& c : {Case{{9, 65}, 1}, {{65, 9}, 0}, {{2, 1500}, 1}, {{3, 40, 300}, 1}}) {
      for (const auto op : {softmax, log_softmax}) {
        const Tensor x = uniform(c.shape, {.dtype = dtype}),
                     grad_output = uniform(c.shape, {.dtype = dtype, .seed = 2});
        const auto gradient = [&](Tensor at, const Tensor& weights) {
          at.set_requires_grad(true);
          op(at, c.dim).backward(weights);
          return at.grad();
        };
        const Tensor expected = gradient(x.to(DType::f64), grad_output.to(DType::f64));
        // Everything is below 4 in size; a saved y is rounded to the dtype, relative to values of at most
        // 1 (softmax) or 4 + log(1500) < 12 (log_softmax: exp(y) magnifies it by its sum of |dy| p <= 2).
        const double sums = static_cast<double>(x.size(c.dim)) / 8 + 64;
        // The exponentials of halves are within 2^-17.
        const Tolerance tolerance{.rtol = 4 * unit_roundoff(dtype),
                                  .atol = 24 * unit_roundoff(dtype) * 0.2 + sums * 4 * 0x1p-24
                                          + (is_half(dtype) ? 2 * 0x1p-17 : 0)};
        for (Layout layout : kLayouts) {
          const Tensor got = gradient(in_layout(x, layout), in_layout(grad_output, layout));
          EXPECT_TRUE(near(got, expected, tolerance)) << to_string(c.shape) << name_of(layout);
        }
      }
    }
  }
}

TEST(Softmax, ExtremeValues) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const int dim : {0, 1}) {
    const auto row = [&](std::vector<double> values) {
      const Tensor x = from_vector(values, {1, 4}, {.device = device()});
      return dim == 1 ? x : x.transpose(0, 1).contiguous();
    };
    EXPECT_TRUE(near(softmax(row({1e30, 0, 0, 0}), dim), std::vector<double>{1, 0, 0, 0}));
    EXPECT_TRUE(near(softmax(row({-1e30, -1e30, -inf, -1e30}), dim),
                     std::vector<double>{1. / 3, 1. / 3, 0, 1. / 3}, {.rtol = 1e-7}));
    EXPECT_TRUE(near(log_softmax(row({-inf, 5, -inf, 5}), dim),
                     std::vector<double>{-inf, -std::log(2), -inf, -std::log(2)}, {.rtol = 1e-7}));
    EXPECT_TRUE(near(softmax(row({-inf, -inf, -inf, -inf}), dim), std::vector<double>(4, nan)));
    EXPECT_TRUE(near(softmax(row({0, nan, 0, 0}), dim), std::vector<double>(4, nan)));
    EXPECT_TRUE(near(softmax(row({0, inf, 0, 0}), dim), std::vector<double>(4, nan)));
  }
}

TEST(Softmax, RowsAddUpToOne) {
  const Tensor y = softmax(uniform({50, 50257}, {.low = -10, .high = 10}), 1);
  for (int row = 0; row < 50; row += 7) {
    double sum = 0;
    for (const double p : y.select(0, row).to_vector<double>()) sum += p;
    EXPECT_NEAR(sum, 1, 50 * 0x1p-24);
  }
}

TEST(Softmax, Errors) {
  EXPECT_EQ(error_of([] { softmax(zeros({2, 3}), 2); }), "[softmax] dimension 2: expected one in [-2, 2)");
  EXPECT_EQ(error_of([] { log_softmax(zeros({2}, {DType::i64}), 0); }),
            "[log_softmax] dtype i64: expected floating point");
}

}  // namespace
}  // namespace ergon::ops
