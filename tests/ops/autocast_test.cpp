// Ops in Autocast scopes: the same as with operands converted by hand, and gradients in the operands' dtypes.

#include "core/autocast.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/linear.h"
#include "ops/matmul.h"
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
