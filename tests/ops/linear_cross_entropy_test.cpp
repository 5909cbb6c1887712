#include <cmath>

#include <gtest/gtest.h>

#include "core/allocator.h"
#include "core/autograd.h"
#include "core/stream.h"
#include "ops/arithmetic.h"
#include "ops/cross_entropy.h"
#include "tests/support/reference.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

const TensorOptions kThere{.device = device()};

Tensor targets_for(const Shape& shape, std::int64_t classes) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(numel(shape)));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = i % 4 == 1 ? -100 : static_cast<std::int64_t>(i * 31) % classes;
  return from_vector(values, shape, {DType::i64, device()});
}

// hidden weight^T as naive loops in f64.
Tensor logits_of(const Tensor& hidden, const Tensor& weight) {
  const std::vector<double> h = hidden.to_vector<double>(), w = weight.to_vector<double>();
  const auto features = static_cast<std::size_t>(weight.size(1)),
             classes = static_cast<std::size_t>(weight.size(0));
  std::vector<double> z(h.size() / features * classes);
  for (std::size_t i = 0; i < z.size(); ++i) {
    for (std::size_t f = 0; f < features; ++f)
      z[i] += h[i / classes * features + f] * w[i % classes * features + f];
  }
  Shape shape = hidden.shape();
  shape.back() = weight.size(0);
  return from_vector(z, shape, {DType::f64, device()});
}

// Gradients of hidden and weight from that of the logits, in f64.
std::pair<std::vector<double>, std::vector<double>> through_product(const Tensor& dlogits,
                                                                    const Tensor& hidden,
                                                                    const Tensor& weight) {
  const std::vector<double> dz = dlogits.to_vector<double>(), h = hidden.to_vector<double>(),
                            w = weight.to_vector<double>();
  std::vector<double> dh(h.size()), dw(w.size());
  const auto features = static_cast<std::size_t>(weight.size(1)),
             classes = static_cast<std::size_t>(weight.size(0));
  for (std::size_t i = 0; i < dz.size(); ++i) {
    for (std::size_t f = 0; f < features; ++f) {
      dh[i / classes * features + f] += dz[i] * w[i % classes * features + f];
      dw[i % classes * features + f] += dz[i] * h[i / classes * features + f];
    }
  }
  return {dh, dw};
}

Tensor magnitude(const Tensor& x) {
  return from_vector(map(x, [](double v) { return std::abs(v); }), x.shape(), {DType::f64, device()});
}

struct Case {
  Shape hidden;
  std::int64_t classes;
};

TEST(LinearCrossEntropy, MatchesTheComposedFormInEveryDtypeAndLayout) {
  for (DType dtype : kFloatingDTypes) {
    for (const Case& c : {Case{{1, 8}, 3}, {{2, 5, 24}, 65}, {{33, 40}, 130}}) {
      const Tensor hidden = uniform(c.hidden, {.dtype = dtype, .seed = 1});
      const Tensor weight = uniform({c.classes, c.hidden.back()}, {.dtype = dtype, .seed = 2});
      Shape positions = c.hidden;
      positions.erase(positions.size() - 1);
      const Tensor targets = targets_for(positions, c.classes);
      for (const CrossEntropyOptions& options :
           {CrossEntropyOptions{}, {.label_smoothing = 0.1, .reduction = Reduction::sum}}) {
        Tensor z = logits_of(hidden, weight).set_requires_grad(true);
        const Tensor expected = cross_entropy(z, targets, options);
        expected.backward();
        const auto [dh, dw] = through_product(z.grad(), hidden, weight);
        const auto [dh_size, dw_size] =
            through_product(magnitude(z.grad()), magnitude(hidden), magnitude(weight));
        // Logits below 16 * features / 4 in size, off by features roundings of that; each gradient is a sum
        // of dlogits that are off by as much, relatively, and of terms of order 2.
        const double unit = dtype == DType::f64 ? 0x1p-51 : 0x1p-24,
                     features = static_cast<double>(c.hidden.back());
        const double logit_error = unit * (features * 4 * (features / 4 + 4) + 100);
        const double rows = static_cast<double>(targets.numel());
        for (Layout layout : kLayouts) {
          SCOPED_TRACE(fmt::format("{} {} {}", name_of(dtype), c.hidden, name_of(layout)));
          Tensor h = in_layout(hidden, layout).set_requires_grad(true);
          Tensor w = in_layout(weight, layout).set_requires_grad(true);
          const Tensor loss = linear_cross_entropy(h, w, in_layout(targets, layout), options);
          EXPECT_TRUE(near(loss, expected.detach(), {.rtol = 8 * unit, .atol = rows * logit_error}));
          loss.backward();
          // Half precision rounds the logits' gradients, whose factors are at most 2.
          const double lost = is_half(dtype) ? 2 * underflow_error(dtype) : 0;
          const auto bounds = [&](std::span<const double> gradient, std::span<const double> size,
                                  double terms) {
            std::vector<double> bound(gradient.size());
            for (std::size_t i = 0; i < bound.size(); ++i) {
              bound[i] =
                  1.01 * unit_roundoff(dtype) * (std::abs(gradient[i]) + (is_half(dtype) ? size[i] : 0))
                  + terms * lost + 8 * rows * logit_error;
            }
            return bound;
          };
          EXPECT_TRUE(near_each(h.grad(), dh, bounds(dh, dh_size, static_cast<double>(c.classes))));
          EXPECT_TRUE(near_each(w.grad(), dw, bounds(dw, dw_size, rows)));
        }
      }
    }
  }
}

TEST(LinearCrossEntropy, GradientsMatchDifferences) {
  const Tensor hidden = uniform({2, 4, 5}, {.dtype = DType::f64}),
               weight = uniform({7, 5}, {.dtype = DType::f64, .seed = 2});
  const Tensor targets = targets_for({2, 4}, 7);
  for (Reduction reduction : {Reduction::mean, Reduction::sum}) {
    const CrossEntropyOptions options{.label_smoothing = 0.1, .reduction = reduction};
    EXPECT_TRUE(gradients_match(
        [&](Inputs in) { return linear_cross_entropy(in[0], in[1], targets, options); }, {hidden, weight}));
    // One input alone, and a gradient that is not 1.
    EXPECT_TRUE(gradients_match(
        [&](Inputs in) { return linear_cross_entropy(in[0], weight, targets, options) * 0.3; }, {hidden}));
    EXPECT_TRUE(gradients_match(
        [&](Inputs in) { return linear_cross_entropy(hidden, in[0], targets, options) * -2.0; }, {weight}));
  }
}

// More positions than a chunk holds: the same numbers with far less memory than the logits.
TEST(LinearCrossEntropy, ManyChunksAgreeWithWholeLogits) {
  constexpr std::int64_t kRows = 360, kClasses = 60000, kFeatures = 2;
  const Tensor hidden = uniform({kRows, kFeatures}), weight = uniform({kClasses, kFeatures}, {.seed = 2});
  const Tensor targets = targets_for({kRows}, kClasses);
  Tensor h = hidden.clone().set_requires_grad(true), w = weight.clone().set_requires_grad(true);
  const std::int64_t before = memory_stats(device()).current;
  reset_peak_memory(device());
  const Tensor loss = linear_cross_entropy(h, w, targets);
  const std::int64_t peak = memory_stats(device()).peak - before;
  EXPECT_LT(peak, kRows * kClasses * 4 * 6 / 10);
  loss.backward();

  Tensor z = logits_of(hidden, weight).to(DType::f32).set_requires_grad(true);
  const Tensor expected = cross_entropy(z, targets);
  expected.backward();
  const auto [dh, dw] = through_product(z.grad(), hidden, weight);
  // A logit is off by at most 2^-24 * (4 * 8 + 8), a probability relatively by twice that and 50 more
  // roundings.
  const double error = 0x1p-24 * 250;
  EXPECT_TRUE(near(loss, expected.detach(), {.rtol = error}));
  EXPECT_TRUE(near(h.grad(), dh, {.atol = 2 * error / kRows * 2}));
  EXPECT_TRUE(near(w.grad(), dw, {.rtol = 4 * error, .atol = 2 * error / kRows * 2}));
}

TEST(LinearCrossEntropy, RepeatedBackwardsAddUp) {
  Tensor h = uniform({6, 5}).set_requires_grad(true),
         w = uniform({4, 5}, {.seed = 2}).set_requires_grad(true);
  const Tensor targets = targets_for({6}, 4);
  const Tensor loss = linear_cross_entropy(h, w, targets);
  loss.backward({}, true);
  const Tensor once = w.grad().clone();
  loss.backward(full({}, 0, kThere), true);
  EXPECT_TRUE(equal_bits(w.grad(), once));
  loss.backward(full({}, 2, kThere), true);  // three times in all
  loss.backward(full({}, 1, kThere));
  EXPECT_TRUE(near(w.grad(), (once * 4.0).to_vector<double>(), {.rtol = 8 * 0x1p-24}));
}

TEST(LinearCrossEntropy, GradientsHandedOutStayAsTheyAre) {
  const std::vector<Tensor> inputs{uniform({6, 5}).set_requires_grad(true),
                                   uniform({4, 5}, {.seed = 2}).set_requires_grad(true)};
  const std::vector<Tensor> loss{linear_cross_entropy(inputs[0], inputs[1], targets_for({6}, 4))};
  const std::vector<Tensor> first = autograd::grad(loss, inputs, {}, true);
  const Tensor hidden = first[0].clone(), weight = first[1].clone();
  autograd::grad(loss, inputs, std::vector{full({}, 3, kThere)}, true);
  EXPECT_TRUE(equal_bits(first[0], hidden) && equal_bits(first[1], weight));
}

// fp16 gradients that would vanish before loss scaling are kept in fp32 until they are scaled.
TEST(LinearCrossEntropy, LossScalingReachesTinyGradients) {
  Tensor h = full({4096, 2}, 0x1p-14, {DType::f16, device()}).set_requires_grad(true);
  const Tensor w = from_vector(std::vector<float>{0, 0, 0, 0x1p-12f}, {2, 2}, {DType::f16, device()});
  const Tensor loss = linear_cross_entropy(h, w, zeros({4096}, {DType::i64, device()}));
  loss.backward(full({}, 65536, kThere));
  const double expected = 65536.0 / 4096 * 0.5 * 0x1p-12;
  EXPECT_TRUE(near(h.grad().select(1, 1), std::vector<double>(4096, expected), {.rtol = 0x1p-10}));
}

TEST(LinearCrossEntropy, NoRowsAndNoGradients) {
  Tensor w = uniform({4, 5}).set_requires_grad(true);
  const Tensor loss = linear_cross_entropy(zeros({0, 5}, kThere), w, zeros({0}, {DType::i64, device()}),
                                           {.reduction = Reduction::sum});
  EXPECT_EQ(loss.item<float>(), 0);
  loss.backward();
  EXPECT_TRUE(near(w.grad(), std::vector<double>(20, 0)));
  NoGradGuard no_grad;
  EXPECT_FALSE(
      linear_cross_entropy(zeros({3, 5}, kThere), w, zeros({3}, {DType::i64, device()})).requires_grad());
}

TEST(LinearCrossEntropy, ErrorsNameShapes) {
  const Tensor h = zeros({2, 3, 8}, kThere), w = zeros({5, 8}, kThere),
               t = zeros({2, 3}, {DType::i64, device()});
  EXPECT_EQ(error_of([&] {
              linear_cross_entropy(h, zeros({5, 9}, kThere), t);
            }),
            "[linear_cross_entropy] hidden (2, 3, 8) and weight (5, 9): expected a weight (classes, 8)");
  EXPECT_EQ(error_of([&] { linear_cross_entropy(h, w.to(DType::bf16), t); }),
            "[linear_cross_entropy] hidden is f32, weight is bf16: expected the same dtype");
  EXPECT_EQ(error_of([&] { linear_cross_entropy(h, w, t, {.reduction = Reduction::none}); }),
            "[linear_cross_entropy] reduction none: expected mean or sum; use linear and cross_entropy");
  EXPECT_EQ(error_of([&] {
              linear_cross_entropy(h, w, full({2, 3}, 5, {DType::i64, device()}));
              synchronize(device());
            }),
            device().is_cpu() ? "[linear_cross_entropy] target 5 at position 0 of 6: expected 0 to 4 (5 "
                                "classes) or ignore_index -100"
                              : "[cross_entropy] target 5 at position 0: expected one in [0, 5)");
}

}  // namespace
}  // namespace ergon::ops
