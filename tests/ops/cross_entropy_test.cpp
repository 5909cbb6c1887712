#include "ops/cross_entropy.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "core/allocator.h"
#include "core/autograd.h"
#include "core/stream.h"
#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

constexpr double kInf = std::numeric_limits<double>::infinity();
const TensorOptions kThere{.device = device()};

struct Reference {
  std::vector<double> loss, loss_tolerance;  // one a row
  std::vector<double> grad, grad_tolerance;  // of the sum of weights[r] * loss[r]
};

// Naive loops in fp64. The bounds: every exp is relatively off by |x - max| + 3 roundings, their sum by 40
// more; the logarithm turns that into an absolute error, on top of the roundings of lse and the loss
// themselves.
Reference reference(const Tensor& logits, const std::vector<std::int64_t>& targets,
                    const CrossEntropyOptions& options, const std::vector<double>& weights, double unit) {
  const std::vector<double> x = logits.to_vector<double>();
  const auto cols = static_cast<std::size_t>(logits.size(-1)), rows = targets.size();
  Reference ref{std::vector<double>(rows), std::vector<double>(rows), std::vector<double>(x.size()),
                std::vector<double>(x.size())};
  const double smoothing = options.label_smoothing, n = static_cast<double>(cols);
  for (std::size_t r = 0; r < rows; ++r) {
    if (targets[r] == options.ignore_index) continue;
    const double* row = x.data() + r * cols;
    double max = -kInf, sum = 0, mean = 0, mean_abs = 0, distance = 0;
    for (std::size_t c = 0; c < cols; ++c) max = std::max(max, row[c]);
    for (std::size_t c = 0; c < cols; ++c) {
      sum += std::exp(row[c] - max);
      if (row[c] != -kInf) distance += std::exp(row[c] - max) * (max - row[c]);
      mean += row[c] / n, mean_abs += std::fabs(row[c]) / n;
    }
    const double lse = max + std::log(sum), hit = row[targets[r]];
    ref.loss[r] = lse - (1 - smoothing) * hit - (smoothing == 0 ? 0 : smoothing * mean);
    const double lse_error = unit * (distance / sum + 40 + std::log2(n));
    ref.loss_tolerance[r] = lse_error + unit * std::fabs(ref.loss[r]) + 40 * unit * smoothing * mean_abs;
    for (std::size_t c = 0; c < cols; ++c) {
      const double p = std::exp(row[c] - lse),
                   hot = static_cast<double>(static_cast<std::int64_t>(c) == targets[r]);
      const std::size_t i = r * cols + c;
      ref.grad[i] = weights[r] * (p - (1 - smoothing) * hot - smoothing / n);
      const double exponent = row[c] == -kInf ? 0 : std::fabs(row[c] - lse) + 2 * std::fabs(lse);
      ref.grad_tolerance[i] =
          std::fabs(weights[r])
          * (p * (lse_error + unit * (exponent + 4)) + 4 * unit * (p + hot + smoothing / n));
    }
  }
  return ref;
}

std::vector<std::int64_t> some_targets(std::int64_t rows, std::int64_t classes, bool ignore_some) {
  std::vector<std::int64_t> targets;
  for (std::int64_t r = 0; r < rows; ++r)
    targets.push_back(ignore_some && r % 5 == 3 ? -100 : (r * 7919 + 3) % classes);
  return targets;
}

Tensor classes_of(const std::vector<std::int64_t>& values, const Shape& shape) {
  return from_vector(values, shape, {DType::i64, device()});
}

struct Case {
  std::int64_t rows, classes;
};
constexpr Case kCases[] = {{1, 1},    {3, 2},    {33, 15},  {20, 16}, {7, 17},
                           {6, 1023}, {6, 1024}, {6, 1025}, {4, 5000}};

TEST(CrossEntropy, MatchesFp64InEveryDtypeLayoutAndReduction) {
  for (DType dtype : kFloatingDTypes) {
    for (const Case& c : kCases) {
      const Tensor x = uniform({c.rows, c.classes}, {.dtype = dtype, .low = -9, .high = 9});
      const double unit = dtype == DType::f64 ? 32 * 0x1p-53 : 0x1p-24;
      const DType loss_dtype = dtype == DType::f64 ? DType::f64 : DType::f32;
      for (double smoothing : {0.0, 0.1}) {
        const bool ignore = smoothing > 0;
        const std::vector<std::int64_t> targets = some_targets(c.rows, c.classes, ignore);
        const auto counted =
            static_cast<double>(std::count_if(targets.begin(), targets.end(), [](auto t) { return t >= 0; }));
        for (Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
          const CrossEntropyOptions options{.label_smoothing = smoothing, .reduction = reduction};
          std::vector<double> weights(targets.size(), reduction == Reduction::mean ? 2 / counted : 2);
          Tensor grad_output = full({}, 2, {loss_dtype, device()});
          if (reduction == Reduction::none) {
            grad_output = uniform({c.rows}, {.dtype = loss_dtype});
            weights = grad_output.to_vector<double>();
          }
          Reference expected = reference(x, targets, options, weights, unit);
          for (std::size_t i = 0; i < expected.grad.size(); ++i) {
            expected.grad_tolerance[i] +=
                1.01 * unit_roundoff(dtype) * std::fabs(expected.grad[i]) + underflow_error(dtype);
          }
          if (is_half(dtype)) {  // exponentials within 2^-17, and with them lse
            for (double& allowed : expected.loss_tolerance) allowed += 0x1p-17;
            for (std::size_t i = 0; i < expected.grad.size(); ++i) {
              const double weight = std::fabs(weights[i / static_cast<std::size_t>(c.classes)]);
              expected.grad_tolerance[i] += 0x1p-16 * (std::fabs(expected.grad[i]) + 2 * weight);
            }
          }
          double sum = 0, tolerance = 0;
          for (std::size_t r = 0; r < targets.size(); ++r) {
            sum += expected.loss[r],
                tolerance += expected.loss_tolerance[r] + unit * std::fabs(expected.loss[r]);
          }
          if (reduction != Reduction::none) {
            const double divisor = reduction == Reduction::mean ? counted : 1;
            expected.loss = {sum / divisor}, expected.loss_tolerance = {2 * tolerance / divisor};
          }
          for (Layout layout : kLayouts) {
            SCOPED_TRACE(fmt::format("{} ({}, {}) smoothing {} reduction {} {}", name_of(dtype), c.rows,
                                     c.classes, smoothing, static_cast<int>(reduction), name_of(layout)));
            Tensor in = in_layout(x, layout).set_requires_grad(true);
            const DType index = layout == Layout::strided ? DType::i32 : DType::i64;
            const Tensor target = in_layout(from_vector(targets, {c.rows}, {index, device()}), layout);
            const Tensor loss = cross_entropy(in, target, options);
            EXPECT_EQ(loss.dtype(), loss_dtype);
            EXPECT_TRUE(near_each(loss, expected.loss, expected.loss_tolerance));
            loss.backward(grad_output);
            EXPECT_TRUE(near_each(in.grad(), expected.grad, expected.grad_tolerance));
          }
        }
      }
    }
  }
}

TEST(CrossEntropy, GradientsMatchDifferences) {
  const Tensor x = uniform({2, 3, 5}, {.dtype = DType::f64});
  const Tensor targets = classes_of({0, 4, -7, 2, 2, 1}, {2, 3});
  for (double smoothing : {0.0, 0.2}) {
    for (Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
      const CrossEntropyOptions options{
          .ignore_index = -7, .label_smoothing = smoothing, .reduction = reduction};
      EXPECT_TRUE(gradients_match([&](Inputs in) { return cross_entropy(in[0], targets, options); }, {x}));
    }
  }
}

TEST(CrossEntropy, MaskedAndExtremeLogits) {
  const auto inf = static_cast<float>(kInf);
  // A whole first block of -inf, then one class; a huge logit; NaN.
  std::vector<float> masked(2000, -inf);
  masked[1500] = 3;
  Tensor x = from_vector(masked, {1, 2000}, kThere).set_requires_grad(true);
  Tensor loss = cross_entropy(x, classes_of({1500}, {1}));
  EXPECT_EQ(loss.item<float>(), 0);
  loss.backward();
  EXPECT_TRUE(near(x.grad(), std::vector<double>(2000, 0)));
  const auto of = [](std::vector<float> row, std::int64_t target) {
    const auto size = static_cast<std::int64_t>(row.size());
    return cross_entropy(from_vector(row, {1, size}, kThere), classes_of({target}, {1})).item<float>();
  };
  EXPECT_EQ(of({1e30f, -1e30f}, 0), 0);
  EXPECT_EQ(of({1e30f, -1e30f}, 1), 2e30f);
  EXPECT_EQ(of({0, -inf}, 1), inf);
  EXPECT_TRUE(std::isnan(of({0, NAN, 5}, 0)));
  EXPECT_TRUE(std::isnan(of({NAN, -inf}, 1)));
  EXPECT_TRUE(std::isnan(of({-inf, -inf}, 0)));
}

TEST(CrossEntropy, IgnoredAndNoRows) {
  Tensor x = uniform({3, 4}).set_requires_grad(true);
  const Tensor none = full({3}, -100, {DType::i64, device()});
  EXPECT_TRUE(std::isnan(cross_entropy(x, none).item<float>()));
  EXPECT_TRUE(std::isnan(cross_entropy(zeros({0, 4}, kThere), classes_of({}, {0})).item<float>()));
  const Tensor sum = cross_entropy(x, none, {.reduction = Reduction::sum});
  EXPECT_EQ(sum.item<float>(), 0);
  sum.backward();
  EXPECT_TRUE(near(x.grad(), std::vector<double>(12, 0)));
  // NaN in an ignored row stays out.
  x = full({2, 4}, NAN, kThere).set_requires_grad(true);
  NoGradGuard no_grad;
  x.select(0, 0).fill_(1);
  EXPECT_FLOAT_EQ(cross_entropy(x, classes_of({2, -100}, {2})).item<float>(), std::log(4.0f));
}

TEST(CrossEntropy, ResultsAreTheSameBitsForAnyNumberOfThreads) {
  const Tensor x = uniform({301, 1100});
  const Tensor targets = classes_of(some_targets(301, 1100, true), {301});
  const auto run = [&] {
    Tensor in = x.clone().set_requires_grad(true);
    const Tensor loss = cross_entropy(in, targets);
    loss.backward();
    return std::vector{loss.detach(), in.grad()};
  };
  const std::vector<Tensor> expected = with_threads(1, run);
  for (int threads : {2, 5}) {
    const std::vector<Tensor> got = with_threads(threads, run);
    EXPECT_TRUE(equal_bits(got[0], expected[0]) && equal_bits(got[1], expected[1])) << threads;
  }
}

TEST(CrossEntropy, ErrorsNameRowValueAndClasses) {
  const Tensor x = zeros({2, 3, 5}, kThere);
  const auto error = [&](const Tensor& targets, const CrossEntropyOptions& options = {}) {
    return error_of([&] {
      cross_entropy(x, targets, options);
      synchronize(device());
    });
  };
  const bool cpu = device().is_cpu();
  EXPECT_EQ(
      error(classes_of({0, 1, 2, 3, 5, 9}, {2, 3})),
      cpu ? "[cross_entropy] target 5 at position 4 of 6: expected 0 to 4 (5 classes) or ignore_index -100"
          : "[cross_entropy] target 5 at position 4: expected one in [0, 5)");
  EXPECT_EQ(
      error(full({2, 3}, -1, {DType::i32, device()})),
      cpu ? "[cross_entropy] target -1 at position 0 of 6: expected 0 to 4 (5 classes) or ignore_index -100"
          : "[cross_entropy] target -1 at position 0: expected one in [0, 5)");
  EXPECT_EQ(error(classes_of({0, 0, 0, 0, 0, 0}, {6})),
            "[cross_entropy] targets (6,): expected (2, 3), one for each position");
  EXPECT_EQ(error(zeros({2, 3}, kThere)), "[cross_entropy] targets are f32: expected i32 or i64");
  EXPECT_EQ(error(zeros({2, 3}, {DType::i64, device()}), {.label_smoothing = 1}),
            "[cross_entropy] label_smoothing 1: expected a number in [0, 1)");
}

}  // namespace
}  // namespace ergon::ops
