// Ops in Autocast scopes: the same as with operands converted by hand, and gradients in the operands' dtypes.

#include "core/autocast.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/activation.h"
#include "ops/arithmetic.h"
#include "ops/attention.h"
#include "ops/compare.h"
#include "ops/conv2d.h"
#include "ops/cross_entropy.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/rms_norm.h"
#include "ops/softmax.h"
#include "ops/swiglu.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

constexpr DType kHalf[] = {DType::bf16, DType::f16};

Tensor leaf(const Shape& shape, std::uint64_t seed, DType dtype = DType::f32) {
  Tensor tensor = test::uniform(shape, {.dtype = dtype, .low = -1, .high = 1, .seed = seed});
  tensor.set_requires_grad(true);
  return tensor;
}

// A gradient of an f32 operand has the sums of the half-precision product's, before they are rounded to it.
testing::AssertionResult is_unrounded(const Tensor& gradient, const Tensor& rounded) {
  if (gradient.dtype() != DType::f32) return testing::AssertionFailure() << name_of(gradient.dtype());
  if (equal_bits(gradient, rounded.to(DType::f32))) {
    return testing::AssertionFailure() << "rounded to " << name_of(rounded.dtype());
  }
  return test::near(gradient.to(rounded.dtype()), rounded);
}

TEST(AutocastOps, LinearIsTheHalfPrecisionProductWithUnroundedGradients) {
  for (const DType dtype : kHalf) {
    const Tensor x = leaf({2, 9, 33}, 1), w = leaf({17, 33}, 2), b = leaf({17}, 3);
    const Tensor x_low = leaf({2, 9, 33}, 1, dtype), w_low = leaf({17, 33}, 2, dtype), b_same = leaf({17}, 3);
    const ops::LinearOptions options{.activation = ops::Activation::gelu_tanh};
    const Tensor expected = ops::linear(x_low, w_low, b_same, options);
    Tensor y;
    {
      const Autocast guard(dtype);
      y = ops::linear(x, w, b, options);
    }
    EXPECT_TRUE(equal_bits(y, expected));
    const Tensor gradient = test::uniform(y.shape(), {.dtype = dtype, .seed = 4});
    y.backward(gradient);
    expected.backward(gradient);
    EXPECT_TRUE(is_unrounded(x.grad(), x_low.grad()));
    EXPECT_TRUE(is_unrounded(w.grad(), w_low.grad()));
    EXPECT_TRUE(equal_bits(b.grad(), b_same.grad()));
  }
}

TEST(AutocastOps, MatmulIsTheHalfPrecisionProductWithUnroundedGradients) {
  for (const DType dtype : kHalf) {
    const Tensor a = leaf({2, 5, 33}, 1), b = leaf({33, 7}, 2);
    const Tensor a_low = leaf({2, 5, 33}, 1, dtype), b_low = leaf({33, 7}, 2, dtype);
    const Tensor expected = ops::matmul(a_low, b_low);
    Tensor y;
    {
      const Autocast guard(dtype);
      y = ops::matmul(a, b);
    }
    EXPECT_TRUE(equal_bits(y, expected));
    const Tensor gradient = test::uniform(y.shape(), {.dtype = dtype, .seed = 4});
    y.backward(gradient);
    expected.backward(gradient);
    EXPECT_TRUE(is_unrounded(a.grad(), a_low.grad()));
    EXPECT_TRUE(is_unrounded(b.grad(), b_low.grad()));
  }
}

struct Conversion {
  const char* name;
  std::function<Tensor(std::span<const Tensor>)> function;
  struct Input {
    Shape shape;
    DType given, taken;
  };
  std::vector<Input> inputs;
};

// Results and gradients have the same bits as those of an op on operands converted by hand.
TEST(AutocastOps, OperandsAreConvertedAsTheTableSays) {
  using In = std::span<const Tensor>;
  constexpr DType f32 = DType::f32, low = DType::bf16;
  const auto half_to_f32 = [](const char* name, std::function<Tensor(const Tensor&)> f) {
    return Conversion{name, [f](In in) { return f(in[0]); }, {{{3, 40}, low, f32}}};
  };
  const Conversion conversions[] = {
      {"conv2d",
       [](In in) { return ops::conv2d(in[0], in[1], in[2]); },
       {{{2, 3, 5, 5}, f32, low}, {{4, 3, 3, 3}, f32, low}, {{4}, f32, low}}},
      {"attention",
       [](In in) { return ops::scaled_dot_product_attention(in[0], in[1], in[2], {.causal = true}); },
       {{{1, 6, 2, 8}, f32, low}, {{1, 6, 2, 8}, low, low}, {{1, 6, 2, 8}, f32, low}}},
      half_to_f32("softmax", [](const Tensor& x) { return ops::softmax(x, 1); }),
      half_to_f32("log_softmax", [](const Tensor& x) { return ops::log_softmax(x, 1); }),
      half_to_f32("exp", [](const Tensor& x) { return ops::exp(x); }),
      half_to_f32("square", [](const Tensor& x) { return ops::square(x); }),
      half_to_f32("pow 2", [](const Tensor& x) { return ops::pow(x, 2); }),
      half_to_f32("pow 3", [](const Tensor& x) { return ops::pow(x, 3); }),
      half_to_f32("log", [](const Tensor& x) { return ops::log(x); }),
      half_to_f32("rsqrt", [](const Tensor& x) { return ops::rsqrt(x); }),
      half_to_f32("sum", [](const Tensor& x) { return ops::sum(x, {1}); }),
      half_to_f32("mean", [](const Tensor& x) { return ops::mean(x, {1}); }),
      {"gelu", [](In in) { return ops::gelu(in[0]); }, {{{3, 40}, low, low}}},
      {"add", [](In in) { return in[0] + in[1]; }, {{{3, 40}, low, f32}, {{3, 40}, f32, f32}}},
      {"swiglu", [](In in) { return ops::swiglu(in[0], in[1]); }, {{{3, 40}, low, f32}, {{3, 40}, f32, f32}}},
      {"layer_norm",
       [](In in) { return ops::layer_norm(in[0], in[1], in[2]); },
       {{{3, 40}, low, low}, {{40}, f32, f32}, {{40}, f32, f32}}},
      {"add_rms_norm",
       [](In in) {
         const auto [normed, sum] = ops::add_rms_norm(in[0], in[1], in[2]);
         return normed + sum;
       },
       {{{3, 40}, low, f32}, {{3, 40}, f32, f32}, {{40}, f32, f32}}},
      {"cross_entropy",
       [](In in) {
         const std::vector<std::int64_t> classes{1, 0, 39};
         return ops::cross_entropy(in[0], from_vector(classes, {3}, {DType::i64, test::device()}));
       },
       {{{3, 40}, low, f32}}},
  };
  for (const Conversion& conversion : conversions) {
    SCOPED_TRACE(conversion.name);
    std::vector<Tensor> given, leaves, by_hand;
    for (const Conversion::Input& input : conversion.inputs) {
      Tensor values = test::uniform(input.shape, {.low = 0.5, .high = 2, .seed = given.size() + 1});
      for (std::vector<Tensor>* list : {&given, &leaves}) {
        list->push_back(values.to(input.given).clone());
        list->back().set_requires_grad(true);
      }
      by_hand.push_back(leaves.back().to(input.taken));
    }
    const Tensor expected = conversion.function(by_hand);
    Tensor y;
    {
      const Autocast guard(low);
      y = conversion.function(given);
    }
    ASSERT_TRUE(equal_bits(y, expected)) << name_of(y.dtype());
    const Tensor gradient = test::uniform(y.shape(), {.dtype = y.dtype(), .seed = 9});
    y.backward(gradient);
    expected.backward(gradient);
    for (std::size_t i = 0; i < given.size(); ++i) {
      EXPECT_TRUE(equal_bits(given[i].grad(), leaves[i].grad())) << "gradient " << i;
    }
  }
}

TEST(AutocastOps, LinearCrossEntropyRoundsItsOperandsAndTheLogitsGradientsOnly) {
  const std::vector<std::int64_t> classes{1, 0, 16, -100, 5};
  const Tensor targets = from_vector(classes, {5}, {DType::i64, test::device()});
  for (const DType dtype : kHalf) {
    const Tensor hidden = leaf({5, 24}, 1), weight = leaf({17, 24}, 2);
    const Tensor hidden_low = leaf({5, 24}, 1, dtype), weight_low = leaf({17, 24}, 2, dtype);
    const Tensor expected = ops::linear_cross_entropy(hidden_low, weight_low, targets);
    Tensor loss;
    {
      const Autocast guard(dtype);
      loss = ops::linear_cross_entropy(hidden, weight, targets);
    }
    EXPECT_EQ(loss.dtype(), DType::f32);
    EXPECT_TRUE(equal_bits(loss, expected));
    loss.backward();
    expected.backward();
    EXPECT_TRUE(is_unrounded(hidden.grad(), hidden_low.grad()));
    EXPECT_TRUE(is_unrounded(weight.grad(), weight_low.grad()));
  }
}

// A mean over 1,024 rows of logits whose gradients are about 2^-22, where f16 has but 2 bits. What is given
// is exact in f16, so that the rounding of those gradients, to 11 bits when they are scaled, is all that
// differs.
TEST(AutocastOps, GradientsOfAMeanOverManyRowsDoNotUnderflowF16) {
  const Tensor hidden = ones({1024, 1}, {.device = test::device()}),
               targets = zeros({1024}, {DType::i64, test::device()});
  const std::vector<float> logits{8, 0, 0.25, 0.5, -0.25, -0.5, 0.75, 1};
  const auto gradient_of = [&](DType dtype) {
    Tensor weight = from_vector(logits, {8, 1}, {.device = test::device()});
    weight.set_requires_grad(true);
    const Autocast guard(dtype);
    ops::linear_cross_entropy(hidden, weight, targets).backward();
    return weight.grad();
  };
  EXPECT_TRUE(test::near(gradient_of(DType::f16), gradient_of(DType::f32), {.rtol = 0x1p-10}));
}

TEST(AutocastOps, F32InsideRaisesWhatTheScopeLeftInHalfPrecision) {
  const Autocast outer(DType::bf16);
  const Tensor x = leaf({4, 8}, 1), w = leaf({8, 8}, 2), low = ops::linear(x, w);
  const Autocast inner(DType::f32);
  const Tensor y = ops::linear(low, w);
  EXPECT_EQ(y.dtype(), DType::f32);
  EXPECT_TRUE(equal_bits(y, ops::linear(low.to(DType::f32), w)));
}

}  // namespace
}  // namespace ergon
