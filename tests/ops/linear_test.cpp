#include "ops/linear.h"

#include <cmath>

#include <gtest/gtest.h>

#include "ops/matmul.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using ops::Activation;
using ops::WeightLayout;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// a (M, K) b (K, N) in fp64; `magnitude` gets |a| |b|.
std::vector<double> product(const Tensor& a, const Tensor& b, std::vector<double>* magnitude) {
  const std::int64_t M = a.size(0), K = a.size(1), N = b.size(1);
  const std::vector<double> as = a.to_vector<double>(), bs = b.to_vector<double>();
  std::vector<double> out(at(M * N)), size(at(M * N));
  for (std::int64_t i = 0; i < M; ++i) {
    for (std::int64_t k = 0; k < K; ++k) {
      for (std::int64_t j = 0; j < N; ++j) {
        const double term = as[at(i * K + k)] * bs[at(k * N + j)];
        out[at(i * N + j)] += term;
        size[at(i * N + j)] += std::abs(term);
      }
    }
  }
  if (magnitude != nullptr) *magnitude = size;
  return out;
}

// Of a sum of products in fp32: its additions, and on CUDA those within which f32 products are (2^-19).
double roundings(double products, DType dtype) {
  return products + (dtype == DType::f32 && !test::device().is_cpu() ? 32 : 0);
}

TEST(Matmul, AllLayoutsAndDtypesWithinTheBound) {
  for (const DType dtype : test::kFloatingDTypes) {
    for (const test::Layout layout_a : test::kLayouts) {
      for (const test::Layout layout_b : test::kLayouts) {
        const Tensor a = test::in_layout(test::uniform({33, 65}, {.dtype = dtype, .seed = 1}), layout_a);
        const Tensor b = test::in_layout(test::uniform({65, 31}, {.dtype = dtype, .seed = 2}), layout_b);
        std::vector<double> bound;
        const std::vector<double> expected = product(a, b, &bound);
        const double acc = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
        for (std::size_t i = 0; i < bound.size(); ++i) {
          bound[i] = roundings(65, dtype) * acc * bound[i] * 1.01
                     + test::unit_roundoff(dtype) * std::abs(expected[i]) * 1.01;
        }
        EXPECT_TRUE(test::near_each(ops::matmul(a, b), expected, bound))
            << name_of(dtype) << " " << test::name_of(layout_a);
      }
    }
  }
}

TEST(Matmul, BatchesBroadcast) {
  const Tensor a = test::integers({2, 1, 3, 4}, {.seed = 1}), b = test::integers({5, 4, 6}, {.seed = 2});
  const Tensor c = ops::matmul(a, b);
  ASSERT_EQ(c.shape(), (Shape{2, 5, 3, 6}));
  for (std::int64_t i = 0; i < 2; ++i) {
    for (std::int64_t j = 0; j < 5; ++j) {
      EXPECT_TRUE(test::near(c[i][j], product(a[i][0], b[j], nullptr)));
    }
  }
  // More batch dimensions than the kernel has, none of them mergeable.
  const Tensor deep = test::integers({2, 3, 2, 4, 5}, {.seed = 3}).permute({2, 0, 1, 3, 4}),
               right = test::integers({2, 2, 3, 5, 4}, {.seed = 4});
  const Tensor d = ops::matmul(deep, right);
  for (std::int64_t i = 0; i < 12; ++i) {
    const std::int64_t x = i / 6, y = i / 3 % 2, z = i % 3;
    EXPECT_TRUE(test::near(d[x][y][z], product(deep[x][y][z], right[x][y][z], nullptr)));
  }
}

TEST(Matmul, VectorsDropTheirDimension) {
  const Tensor m = test::integers({3, 4}), v = test::integers({4}, {.seed = 2});
  EXPECT_EQ(ops::matmul(m, v).shape(), (Shape{3}));
  EXPECT_EQ(ops::matmul(v, m.transpose(0, 1)).shape(), (Shape{3}));
  EXPECT_EQ(ops::matmul(v, v).shape(), (Shape{}));
  EXPECT_TRUE(test::near(ops::matmul(m, v), ops::matmul(v, m.transpose(0, 1))));
}

TEST(Matmul, Gradients) {
  const auto f = [](std::span<const Tensor> in) { return ops::matmul(in[0], in[1]); };
  const auto input = [](const Shape& shape, std::uint64_t seed) {
    return test::uniform(shape, {.dtype = DType::f64, .seed = seed});
  };
  EXPECT_TRUE(test::gradients_match(f, {input({3, 4}, 1), input({4, 2}, 2)}));
  EXPECT_TRUE(test::gradients_match(f, {input({2, 1, 3, 4}, 1), input({3, 4, 2}, 2)}));
  EXPECT_TRUE(test::gradients_match(f, {input({2, 3, 4}, 1), input({4, 2}, 2)}));
}

TEST(Matmul, ErrorNamesBothShapes) {
  EXPECT_EQ(test::error_of([] {
              ops::matmul(zeros({2, 3, 64}), zeros({65, 128}));
            }),
            "[matmul] a (2, 3, 64) and b (65, 128): a.shape[-1] = 64 must equal b.shape[-2] = 65");
  EXPECT_EQ(test::error_of([] {
              ops::matmul(zeros({2, 3, 4}), zeros({5, 4, 2}));
            }),
            "[matmul] shapes (2,) and (5,) do not broadcast: sizes 2 and 5 at dimension 1 from the end");
}

double apply(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2)));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return x;
}

constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu_erf,
                                       Activation::gelu_tanh, Activation::silu};

TEST(Linear, BothWeightLayoutsAndAllActivationsMatchTheReference) {
  for (const DType dtype : test::kFloatingDTypes) {
    for (const Activation activation : kActivations) {
      const Tensor x = test::uniform({2, 9, 33}, {.dtype = dtype, .seed = 1}),
                   w = test::uniform({17, 33}, {.dtype = dtype, .low = -0.5, .high = 0.5, .seed = 2}),
                   b = test::uniform({17}, {.dtype = dtype, .seed = 3});
      std::vector<double> bound;
      std::vector<double> expected = product(x.view({18, 33}), w.transpose(0, 1), &bound);
      const std::vector<double> bias = b.to_vector<double>();
      const double acc = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        // The derivative of every activation is below 1.13; activations are within 8 roundings
        // (kernels/cpu/activations.h).
        const double pre = expected[i] + bias[i % 17];
        expected[i] = apply(activation, pre);
        bound[i] = 1.13 * roundings(35, dtype) * acc * (bound[i] + std::abs(bias[i % 17]))
                   + 8 * acc * (std::abs(pre) + 1)
                   + 1.01 * test::unit_roundoff(dtype) * std::abs(expected[i]);
      }
      const Tensor y = ops::linear(x, w, b, {.activation = activation});
      EXPECT_EQ(y.shape(), (Shape{2, 9, 17}));
      EXPECT_TRUE(test::near_each(y, expected, bound))
          << name_of(dtype) << " activation " << static_cast<int>(activation);
      const Tensor y2 = ops::linear(x, w.transpose(0, 1).contiguous(), b,
                                    {.activation = activation, .layout = WeightLayout::in_out});
      EXPECT_TRUE(test::near_each(y2, expected, bound));
    }
  }
}

TEST(Linear, Gradients) {
  const Tensor x = test::uniform({3, 2, 5}, {.dtype = DType::f64, .seed = 1}),
               w = test::uniform({4, 5}, {.dtype = DType::f64, .seed = 2}),
               b = test::uniform({4}, {.dtype = DType::f64, .seed = 3});
  for (const Activation activation : kActivations) {
    EXPECT_TRUE(test::gradients_match(
        [=](std::span<const Tensor> in) {
          return ops::linear(in[0], in[1], in[2], {.activation = activation});
        },
        {x, w, b}));
  }
  EXPECT_TRUE(test::gradients_match(
      [](std::span<const Tensor> in) {
        return ops::linear(in[0], in[1], {},
                           {.activation = Activation::silu, .layout = WeightLayout::in_out});
      },
      {x, w.transpose(0, 1).contiguous()}));
}

TEST(Linear, BiasGradientOfManyRowsIsExactForIntegers) {
  const Tensor x = test::integers({1000, 3}, {.seed = 1});
  Tensor w = test::integers({530, 3}, {.seed = 2}), b = zeros({530}, {.device = test::device()});
  w.set_requires_grad(true);
  b.set_requires_grad(true);
  const Tensor grad = test::integers({1000, 530}, {.seed = 3});
  ops::linear(x, w, b).backward(grad);
  EXPECT_TRUE(test::near(b.grad(), product(ones({1, 1000}), grad, nullptr)));
  EXPECT_TRUE(test::near(w.grad(), product(grad.transpose(0, 1), x, nullptr)));
}

// Sums of few small whole numbers are exact in half precision.
TEST(Linear, GradientsInHalfPrecisionAreExactForIntegers) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    Tensor x = test::integers({5, 9}, {.dtype = dtype, .seed = 1}),
           w = test::integers({17, 9}, {.dtype = dtype, .seed = 2}), b = zeros({17}, {dtype, test::device()});
    const Tensor grad = test::integers({5, 17}, {.dtype = dtype, .seed = 3});
    for (Tensor* leaf : {&x, &w, &b}) leaf->set_requires_grad(true);
    const auto check = [&](const Tensor& y) {
      y.backward(grad);
      EXPECT_TRUE(test::near(x.grad(), product(grad, w, nullptr)));
      EXPECT_TRUE(test::near(w.grad(), product(grad.transpose(0, 1), x, nullptr)));
      x.zero_grad();
      w.zero_grad();
    };
    check(ops::linear(x, w, b));
    EXPECT_TRUE(test::near(b.grad(), product(ones({1, 5}), grad, nullptr)));
    check(ops::matmul(x, w.transpose(0, 1)));
  }
}

TEST(Linear, ErrorsNameShapes) {
  EXPECT_EQ(test::error_of([] {
              ops::linear(zeros({2, 3}), zeros({5, 4}));
            }),
            "[linear] x (2, 3) and weight (5, 4): x.shape[-1] = 3 must equal weight.shape[1] = 4");
  EXPECT_EQ(test::error_of([] {
              ops::linear(zeros({2, 4}), zeros({5, 4}), zeros({4}));
            }),
            "[linear] bias (4,) f32: expected (5,) f32");
  EXPECT_EQ(test::error_of([] {
              ops::linear(zeros({2, 4}), zeros({5, 4}, {DType::bf16}));
            }),
            "[linear] x is f32, weight bf16: expected one floating dtype");
}

}  // namespace
}  // namespace ergon
