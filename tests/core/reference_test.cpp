#include "tests/support/reference.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "core/autograd.h"

namespace ergon::test {
namespace {

TEST(Reference, LayoutsKeepValuesAndDifferInMemory) {
  for (const Shape& shape : {Shape{}, Shape{0}, Shape{5}, Shape{3, 4}, Shape{2, 3, 4}}) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f64, DType::i64, DType::boolean}) {
      const Tensor x = uniform(shape, {.dtype = dtype});
      for (Layout layout : kLayouts) {
        EXPECT_TRUE(equal_bits(in_layout(x, layout), x)) << name_of(layout) << to_string(shape);
      }
    }
  }
  const Tensor x = uniform({3, 4});
  EXPECT_EQ(in_layout(x, Layout::transposed).strides(), (Strides{1, 3}));
  EXPECT_EQ(in_layout(x, Layout::strided).strides(), (Strides{8, 2}));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(in_layout(x, Layout::misaligned).data_ptr()) % 8, 4u);
}

TEST(Reference, NearReportsTheWorstElement) {
  const Tensor got = from_vector<double>({1, 2.5, 3, 7}, {2, 2}, {DType::f32});
  const testing::AssertionResult result = near(got, std::vector<double>{1, 2, 3, 4}, {.rtol = 0.1});
  EXPECT_FALSE(result);
  EXPECT_STREQ(
      result.message(),
      "2 of 4 elements of f32 (2, 2) are off; worst at (1, 1): got 7, expected 4, error 3, tolerance "
      "0.4");
  EXPECT_TRUE(near(got, std::vector<double>{1, 2.4, 3, 7.1}, {.rtol = 0.1}));
  EXPECT_FALSE(near(got, std::vector<double>{1, 2.5, 3}, {.rtol = 0.1}));
}

TEST(Reference, NanAndInfinityOnlyMatchThemselves) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const Tensor got = from_vector<double>({nan, inf, -inf, 1}, {4}, {DType::f32});
  const Tolerance loose{.rtol = 1e30, .atol = 1e30};
  EXPECT_TRUE(near(got, std::vector<double>{nan, inf, -inf, 1}));
  EXPECT_FALSE(near(got, std::vector<double>{0, inf, -inf, 1}, loose));
  EXPECT_FALSE(near(got, std::vector<double>{nan, 1, -inf, 1}, loose));
  EXPECT_FALSE(near(got, std::vector<double>{nan, inf, inf, 1}, loose));
  EXPECT_FALSE(near(got, std::vector<double>{nan, inf, -inf, nan}, loose));
  EXPECT_FALSE(near(got, std::vector<double>{nan, inf, -inf, inf}, loose));
}

TEST(Reference, GradientsMatchFindsWrongGradients) {
  const auto scaled = [](double factor) {
    return [factor](std::span<const Tensor> inputs) {
      Tensor y = inputs[0].detach().clone();
      return autograd::record("scaled", y, {inputs[0]}, [factor](const Tensor& grad_output, const auto&) {
        std::vector<double> grad = grad_output.to_vector<double>();
        for (double& g : grad) g *= factor;
        return autograd::Gradients{
            from_vector(grad, grad_output.shape(), {DType::f64, grad_output.device()})};
      });
    };
  };
  const std::vector<Tensor> inputs{uniform({3, 4}, {.dtype = DType::f64})};
  EXPECT_TRUE(gradients_match(scaled(1), inputs));
  EXPECT_FALSE(gradients_match(scaled(1.01), inputs));
}

}  // namespace
}  // namespace ergon::test
