#include "ops/reduce.h"

#include <cmath>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/parallel.h"
#include "ops/arithmetic.h"
#include "tests/support/reference.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

struct Case {
  Shape shape;
  Dims dims;
};

const Case kCases[] = {
    {{}, {}},
    {{1}, {}},
    {{31}, {}},
    {{1025}, {0}},
    {{70000}, {}},
    {{33, 65}, {}},
    {{33, 65}, {0}},
    {{33, 65}, {1}},
    {{700, 20}, {0}},
    {{20, 700}, {-1}},
    {{3, 5000}, {1}},
    {{5000, 3}, {0}},
    {{5000, 3}, {1}},
    {{4, 5, 6}, {1}},
    {{4, 5, 6}, {0, 2}},
    {{4, 5, 6}, {2, 1}},
    {{4, 5, 6}, {0, 1}},
    {{2, 3, 4, 5, 6}, {1, 3}},
    {{2, 300, 70}, {0, 1}},
    {{1, 7, 1}, {0, 2}},
    {{0}, {}},
    {{0, 3}, {0}},
    {{0, 3}, {1}},
    {{3, 0}, {1}},
    {{33000, 2}, {0}},
    {{2, 33000}, {1}},
    {{530, 270}, {0}},
};

// op over the reduced dimensions in fp64, with a naive index loop. `from` comes first.
std::vector<double> reference(const Tensor& x, const Dims& dims, double from, double (*op)(double, double)) {
  std::vector<bool> reduced(8, dims.empty());
  for (std::int64_t dim : dims) reduced[static_cast<std::size_t>(wrap_dim(dim, x.dim(), "test"))] = true;
  std::int64_t results = 1;
  for (int dim = 0; dim < x.dim(); ++dim)
    results *= reduced[static_cast<std::size_t>(dim)] ? 1 : x.shape()[dim];
  std::vector<double> expected(static_cast<std::size_t>(results), from);
  const std::vector<double> values = x.to_vector<double>();
  for (std::size_t i = 0; i < values.size(); ++i) {
    auto remaining = static_cast<std::int64_t>(i);
    std::int64_t position = 0, step = 1;
    for (int dim = x.dim() - 1; dim >= 0; --dim) {
      if (!reduced[static_cast<std::size_t>(dim)]) {
        position += remaining % x.shape()[dim] * step;
        step *= x.shape()[dim];
      }
      remaining /= x.shape()[dim];
    }
    double& result = expected[static_cast<std::size_t>(position)];
    result = op(result, values[i]);
  }
  return expected;
}

double plus(double a, double b) { return a + b; }
double plus_abs(double a, double b) { return a + std::fabs(b); }

TEST(Sum, StaysWithinTheStatedBoundInEveryDtypeAndLayout) {
  for (DType dtype : kFloatingDTypes) {
    for (const Case& c : kCases) {
      const Tensor x = uniform(c.shape, {.dtype = dtype, .low = -1, .high = 2});
      const std::vector<double> expected = reference(x, c.dims, 0, plus);
      std::vector<double> allowed = reference(x, c.dims, 0, plus_abs);
      const double terms = std::max<double>(static_cast<double>(x.numel()), 2);
      for (std::size_t i = 0; i < allowed.size(); ++i) {
        // The reference itself is a naive fp64 sum.
        const double tree = dtype == DType::f64 ? (40 + std::log2(terms) + terms) * 0x1p-53
                                                : (25 + std::log2(terms)) * 0x1p-24;
        allowed[i] =
            tree * allowed[i] + 1.01 * unit_roundoff(dtype) * std::fabs(expected[i]) + underflow_error(dtype);
      }
      for (Layout layout : kLayouts) {
        const Tensor y = sum(in_layout(x, layout), c.dims);
        EXPECT_EQ(y.dtype(), dtype);
        EXPECT_TRUE(near_each(y, expected, allowed))
            << to_string(c.shape) << to_string(c.dims) << name_of(layout);
      }
    }
  }
}

TEST(Sum, WholeNumbersAreExactInEveryDtypeAndLayout) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i8, DType::u8, DType::i32,
                      DType::i64, DType::boolean}) {
    for (const Case& c : kCases) {
      const Tensor x = integers(c.shape, {.dtype = dtype, .low = 0, .high = 2});
      if (is_half(dtype) && x.numel() > 200) continue;  // larger sums are rounded
      for (Layout layout : kLayouts) {
        const Tensor y = sum(in_layout(x, layout), c.dims);
        EXPECT_EQ(y.dtype(), is_floating_point(dtype) ? dtype : DType::i64);
        EXPECT_TRUE(near(y, reference(x, c.dims, 0, plus))) << to_string(c.shape) << to_string(c.dims);
      }
    }
  }
}

TEST(Sum, KeepdimKeepsTheDimensions) {
  const Tensor x = zeros({2, 3, 4}, {.device = device()});
  EXPECT_EQ(sum(x, {1}, true).shape(), (Shape{2, 1, 4}));
  EXPECT_EQ(sum(x, {0, -1}, true).shape(), (Shape{1, 3, 1}));
  EXPECT_EQ(sum(x, {}, true).shape(), (Shape{1, 1, 1}));
  EXPECT_EQ(sum(x).shape(), Shape{});
  EXPECT_EQ(amax(x, {2, 0}).shape(), (Shape{3}));
  EXPECT_EQ(argmax(x, 1, true).shape(), (Shape{2, 1, 4}));
}

TEST(Sum, AccumulatesHalvesInFp32) {
  EXPECT_EQ(sum(ones({70000}, {DType::bf16, device()})).item<float>(), 70144);  // 70000 rounded to bf16
  EXPECT_EQ(mean(ones({70000}, {DType::f16, device()})).item<float>(), 1);  // the sum itself is beyond f16
  EXPECT_EQ(sum(ones({1 << 25}, {.device = device()})).item<float>(),
            1 << 25);  // a running fp32 sum stops at 2^24
}

TEST(Sum, SameBitsForAnyNumberOfThreads) {
  const Tensor tall = uniform({3000, 70}), flat = uniform({200000}), wide = uniform({70, 3000});
  const auto all = [&] {
    return std::vector<Tensor>{sum(tall, {0}), sum(flat),  sum(wide, {1}),
                               mean(tall),     amax(wide), sum(wide, {0})};
  };
  const std::vector<Tensor> parallel = all();
  std::vector<Tensor> alone;
  // Inside a parallel region everything runs on the calling thread.
#pragma omp parallel num_threads(2)
  {
#pragma omp single
    alone = all();
  }
  for (std::size_t i = 0; i < alone.size(); ++i) EXPECT_TRUE(equal_bits(alone[i], parallel[i])) << i;
}

TEST(Mean, MatchesFp64) {
  for (DType dtype : kFloatingDTypes) {
    for (const Case& c : kCases) {
      const Tensor x = uniform(c.shape, {.dtype = dtype, .low = 0, .high = 1});
      std::vector<double> expected = reference(x, c.dims, 0, plus);
      const double count =
          expected.empty() ? 1 : static_cast<double>(x.numel()) / static_cast<double>(expected.size());
      for (double& value : expected) value /= count;
      const double terms = std::log2(count + 2);
      const Tolerance tolerance{
          .rtol = unit_roundoff(dtype) * 1.01
                  + (dtype == DType::f64 ? (41 + count) * 0x1p-53 : (26 + terms) * 0x1p-24)};
      EXPECT_TRUE(near(mean(x, c.dims), expected, tolerance)) << to_string(c.shape) << to_string(c.dims);
    }
  }
  EXPECT_EQ(mean(from_vector<double>({1, 2}, {2}, {DType::i32, device()})).item<float>(), 1.5f);
  EXPECT_TRUE(std::isnan(mean(zeros({0}, {.device = device()})).item<float>()));
}

TEST(SumToShape, UndoesBroadcasting) {
  const Tensor x = integers({4, 3, 5});
  EXPECT_TRUE(equal_bits(sum_to_shape(x, {5}), sum(x, {0, 1})));
  EXPECT_TRUE(equal_bits(sum_to_shape(x, {3, 1}), sum(x, {0, 2}).view({3, 1})));
  EXPECT_TRUE(equal_bits(sum_to_shape(x, {}), sum(x)));
  EXPECT_TRUE(equal_bits(sum_to_shape(x.view({1, 4, 3, 5}), {4, 3, 5}), x));
  EXPECT_EQ(error_of([&] { sum_to_shape(x, {4, 5}); }).substr(0, 14), "[sum_to_shape]");
  EXPECT_EQ(error_of([&] {
              sum_to_shape(zeros({1, 3}, {.device = device()}), {4, 3});
            }),
            "[sum_to_shape] shape (4, 3) does not broadcast to (1, 3)");
}

TEST(Extremum, ValuesAndFirstIndicesInEveryDtypeAndLayout) {
  for (DType dtype :
       {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i8, DType::u8, DType::i32, DType::i64}) {
    for (const Shape& shape : {Shape{7}, Shape{33, 65}, Shape{5, 1300}, Shape{1300, 5}, Shape{2, 20, 300},
                               Shape{20000}, Shape{3, 9000}, Shape{9000, 3}}) {
      if (numel(shape) > 12000 && dtype != DType::f16 && dtype != DType::i64) continue;  // it takes long
      const Tensor x = integers(shape, {.dtype = dtype, .low = 0, .high = 100});
      for (int dim = 0; dim < x.dim(); ++dim) {
        for (Layout layout : kLayouts) {
          for (const bool largest : {true, false}) {
            const Tensor in = in_layout(x, layout);
            const auto [values, indices] = largest ? max(in, dim) : min(in, dim);
            const auto expected =
                largest ? reference(x, {dim}, -1, [](double a, double b) { return std::max(a, b); })
                        : reference(x, {dim}, 200, [](double a, double b) { return std::min(a, b); });
            ASSERT_TRUE(near(values, expected));
            EXPECT_EQ(values.dtype(), dtype);
            EXPECT_TRUE(equal_bits(indices, largest ? argmax(in, dim) : argmin(in, dim)));
            // No earlier element is as large, and the one at the index is.
            const Tensor moved = x.transpose(dim, -1), where_moved = values.unsqueeze(dim).transpose(dim, -1),
                         index_moved = indices.unsqueeze(dim).transpose(dim, -1);
            const std::vector<double> elements = moved.to_vector<double>(),
                                      bests = where_moved.to_vector<double>();
            const std::vector<std::int64_t> positions = index_moved.to_vector<std::int64_t>();
            const auto length = static_cast<std::size_t>(x.shape()[dim]);
            for (std::size_t row = 0; row < bests.size(); ++row) {
              const auto begin = elements.begin() + static_cast<std::ptrdiff_t>(row * length);
              const auto first =
                  std::find(begin, begin + static_cast<std::ptrdiff_t>(length), bests[row]) - begin;
              ASSERT_EQ(positions[row], first) << to_string(shape) << dim << name_of(layout);
            }
            EXPECT_TRUE(equal_bits(largest ? amax(in, {dim}) : amin(in, {dim}), values));
          }
        }
      }
    }
  }
}

TEST(Extremum, OfEverything) {
  const Tensor x = from_vector<double>({3, -1, 7, 7, 0, -1}, {2, 3}, {DType::bf16, device()});
  EXPECT_EQ(max(x).item<float>(), 7);
  EXPECT_EQ(min(x).item<float>(), -1);
  EXPECT_EQ(argmax(x).item<std::int64_t>(), 2);
  EXPECT_EQ(argmin(x).item<std::int64_t>(), 1);
  EXPECT_EQ(argmax(x.transpose(0, 1)).item<std::int64_t>(), 1);
}

TEST(Extremum, NanWinsAndTheFirstOneIsFound) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const std::int64_t length : {5, 3000}) {
    Tensor x = uniform({length, 3});
    x.select(1, 1).select(0, length - 2).fill_(nan);
    x.select(1, 1).select(0, length - 1).fill_(nan);
    x.select(1, 2).fill_(-inf);
    for (const Tensor& view : {x, x.transpose(0, 1).contiguous().transpose(0, 1)}) {
      const auto [values, indices] = max(view, 0);
      EXPECT_TRUE(std::isnan(values.select(0, 1).item<float>()));
      EXPECT_EQ(indices.select(0, 1).item<std::int64_t>(), length - 2);
      EXPECT_EQ(values.select(0, 2).item<float>(), -inf);
      EXPECT_EQ(indices.select(0, 2).item<std::int64_t>(), 0);
      EXPECT_TRUE(std::isnan(amax(view).item<float>()));
      EXPECT_TRUE(std::isnan(amin(view, {0}).select(0, 1).item<float>()));
      EXPECT_FALSE(std::isnan(amin(view, {0}).select(0, 0).item<float>()));
    }
  }
}

TEST(Reduce, GradientsMatchDifferences) {
  const Tensor x = uniform({3, 4, 5}, {.dtype = DType::f64});
  const std::function<Tensor(Inputs)> functions[] = {
      [](Inputs in) { return sum(in[0]); },
      [](Inputs in) { return sum(in[0], {1}); },
      [](Inputs in) {
        return sum(in[0], {0, 2}, true);
      },
      [](Inputs in) { return mean(in[0]); },
      [](Inputs in) { return mean(in[0], {-1}); },
      [](Inputs in) {
        return mean(in[0], {0, 1}, true);
      },
      [](Inputs in) { return max(in[0]); },
      [](Inputs in) {
        return amin(in[0], {0, 2});
      },
      [](Inputs in) { return max(in[0], 1).values; },
      [](Inputs in) { return min(in[0], 2, true).values; },
      [](Inputs in) { return max(in[0], 0).values; },
      [](Inputs in) {
        return sum_to_shape(in[0], {4, 1});
      },
  };
  for (std::size_t i = 0; i < std::size(functions); ++i) EXPECT_TRUE(gradients_match(functions[i], {x})) << i;
}

TEST(Extremum, TiesShareOrTheFirstTakesAll) {
  const auto gradient = [](auto function, DType dtype) {
    Tensor x = from_vector<double>({5, 1, 5, 5, 2, 0}, {2, 3}, {dtype, device()});
    x.set_requires_grad(true);
    Tensor y = function(x);
    y.backward(ones(y.shape(), y.options()));
    return x.grad().to_vector<float>();
  };
  for (DType dtype : {DType::f32, DType::f16}) {
    EXPECT_EQ(gradient([](const Tensor& x) { return amax(x, {1}); }, dtype),
              (std::vector<float>{0.5, 0, 0.5, 1, 0, 0}));
    EXPECT_EQ(gradient([](const Tensor& x) { return max(x, 1).values; }, dtype),
              (std::vector<float>{1, 0, 0, 1, 0, 0}));
    EXPECT_EQ(gradient([](const Tensor& x) { return max(x, 0).values; }, dtype),
              (std::vector<float>{1, 0, 1, 0, 1, 0}));
  }
  EXPECT_EQ(gradient([](const Tensor& x) { return max(x) * 3; }, DType::f32),
            (std::vector<float>{1, 0, 1, 1, 0, 0}));
}

TEST(Reduce, Errors) {
  const Tensor x = zeros({2, 3}, {.device = device()});
  EXPECT_EQ(error_of([&] { sum(x, {2}); }), "[sum] dimension 2: expected one in [-2, 2)");
  EXPECT_EQ(error_of([&] { mean(x, {1, -1}); }), "[mean] dims (1, -1) name dimension 1 twice");
  EXPECT_EQ(error_of([&] {
              amax(zeros({2, 0}, {.device = device()}), {1});
            }),
            "[amax] shape (2, 0), dims (1,): no elements to choose from");
  EXPECT_EQ(error_of([&] {
              max(zeros({2, 0}, {.device = device()}), 1);
            }),
            "[max] shape (2, 0), dim 1: no elements to choose from");
  EXPECT_EQ(error_of([&] { argmax(zeros({0}, {.device = device()})); }),
            "[argmax] shape (0,), dim 0: no elements to choose from");
  EXPECT_EQ(amax(zeros({2, 0}, {.device = device()}), {0}).numel(), 0);
}

}  // namespace
}  // namespace ergon::ops
