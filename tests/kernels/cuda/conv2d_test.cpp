// Convolution on CUDA, forward and both gradients, where tiles, dtypes and splits matter; tests/ops has the
// geometries.

#include "ops/conv2d.h"

#include <cmath>

#include <gtest/gtest.h>

#include "kernels/cuda/conv2d/tensor_core.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using ops::Conv2dOptions;

struct Results {
  Tensor y, dx, dw;
};
Results convolve(const Tensor& x_in, const Tensor& w_in, const Tensor& bias, const Conv2dOptions& options,
                 Device device) {
  Tensor x = x_in.to(device).detach(), w = w_in.to(device).detach();
  x.set_requires_grad(true);
  w.set_requires_grad(true);
  const Tensor y = ops::conv2d(x, w, bias.to(device), options);
  y.backward(test::integers(y.shape(), {.dtype = x.dtype(), .low = -2, .high = 3, .seed = 3}).to(device));
  return {y.detach(), x.grad(), w.grad()};
}

// Sums of whole numbers are exact in fp32 in any order, and rounded once: the CPU's bits.
void expect_the_bits_of_the_cpu(const Shape& x_shape, const Shape& w_shape, const Conv2dOptions& options) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    SCOPED_TRACE(testing::Message() << to_string(x_shape) << " " << to_string(w_shape) << " "
                                    << name_of(dtype));
    const auto numbers = [&](const Shape& shape, std::uint64_t seed) {
      return test::integers(shape, {.dtype = dtype, .low = -2, .high = 3, .seed = seed});
    };
    const Tensor x = numbers(x_shape, 1), w = numbers(w_shape, 2), bias = numbers({w_shape[0]}, 4);
    const Results here = convolve(x, w, bias, options, Device::cpu());
    const Results there = convolve(x, w, bias, options, Device::cuda());
    EXPECT_TRUE(equal_bits(there.y, here.y));
    EXPECT_TRUE(equal_bits(there.dx, here.dx));
    EXPECT_TRUE(equal_bits(there.dw, here.dw));
  }
}

TEST(CudaConv2d, WholeNumbersAreExactForBothTilesAndSplits) {
  expect_the_bits_of_the_cpu({2, 4, 84, 84}, {72, 4, 1, 1}, {});                    // forward: 128x128
  expect_the_bits_of_the_cpu({1, 72, 9, 7}, {72, 72, 1, 1}, {});                    // weights: 128x128
  expect_the_bits_of_the_cpu({3, 12, 20, 20}, {9, 12, 3, 3}, {.padding = {1, 1}});  // weights: splits
  expect_the_bits_of_the_cpu({2, 17, 9, 10}, {65, 17, 3, 2}, {.stride = {2, 3}, .padding = {1, 0}});
  expect_the_bits_of_the_cpu({2, 8, 11, 12}, {8, 8, 3, 3}, {.stride = {4, 2}, .dilation = {2, 3}});
}

// One infinity makes the sums it takes part in infinite, and no other: not NaN by the way fp32 is split.
TEST(CudaConv2d, AnInfinityStaysOne) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Tensor x = test::integers({1, 8, 6, 6}, {.dtype = dtype, .low = 1, .high = 4}).to(Device::cuda());
    const Tensor w = test::uniform({8, 8, 3, 3}, {.dtype = dtype, .low = 0.5, .high = 1}).to(Device::cuda());
    x.select(1, 3).select(1, 0).select(1, 0).fill_(-INFINITY);
    const std::vector<double> y = ops::conv2d(x, w).to_vector<double>();
    for (std::size_t i = 0; i < y.size(); ++i) {
      EXPECT_TRUE(i % 16 == 0 ? y[i] == -INFINITY : std::isfinite(y[i])) << i << ": " << y[i];
    }
  }
}

TEST(CudaConv2d, TensorCoresAreForOneGroupOfChannelsWorthFillingUp) {
  Conv2dGeometry g{.batch = 1, .in_channels = 2, .out_channels = 8, .input = {4, 4}, .kernel = {1, 1}};
  g.output = g.input;
  const auto taken = [&](DType dtype) { return cuda::conv2d_detail::uses_tensor_cores(dtype, g); };
  EXPECT_TRUE(taken(DType::bf16));
  EXPECT_FALSE(taken(DType::f64));
  g.in_channels = 1;
  EXPECT_FALSE(taken(DType::bf16));
  EXPECT_TRUE(taken(DType::f32));
  g.in_channels = g.groups = 8;
  EXPECT_FALSE(taken(DType::f32));
}

}  // namespace
}  // namespace ergon::kernels
