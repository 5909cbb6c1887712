#include "kernels/elementwise.h"

#include <bit>
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "core/convert.h"
#include "kernels/cpu/block.h"
#include "kernels/reduce.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

Operand operand(const Tensor& tensor) { return {tensor.data_ptr(), tensor.dtype(), tensor.strides()}; }

// --- conversion ---

template <class Half>
std::vector<Half> all_halves() {
  std::vector<Half> values(65536);
  for (std::uint32_t i = 0; i < 65536; ++i) values[i] = std::bit_cast<Half>(static_cast<std::uint16_t>(i));
  return values;
}

template <class Half>
void expect_same_as_eigen_for_every_half() {
  const std::vector<Half> halves = all_halves<Half>();
  std::vector<float> floats(halves.size());
  convert_run(halves.data(), floats.data(), 65535);  // an odd count: vectors and a tail
  for (std::size_t i = 0; i < 65535; ++i) {
    const float expected = static_cast<float>(halves[i]);
    ASSERT_TRUE(floats[i] == expected || (std::isnan(floats[i]) && std::isnan(expected))) << i;
  }
  std::vector<Half> back(halves.size());
  convert_run(floats.data(), back.data(), 65535);
  for (std::size_t i = 0; i < 65535; ++i) {
    if (!std::isnan(floats[i])) {
      ASSERT_EQ(std::bit_cast<std::uint16_t>(back[i]), i);
    } else {
      ASSERT_TRUE(std::isnan(static_cast<float>(back[i]))) << i;
    }
  }
}

TEST(Convert, EveryHalfBecomesItsFloatAndBack) {
  expect_same_as_eigen_for_every_half<bf16>();
  expect_same_as_eigen_for_every_half<f16>();
}

template <class Half>
void expect_same_rounding_as_eigen() {
  std::vector<float> floats;
  for (std::uint64_t bits = 0; bits < (1ull << 32); bits += 65521) {  // a prime
    floats.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  }
  // Around every tie: half of the last place, and one float to either side.
  for (std::uint32_t half = 0; half < 65535; ++half) {
    const float low = static_cast<float>(std::bit_cast<Half>(static_cast<std::uint16_t>(half)));
    const float high = static_cast<float>(std::bit_cast<Half>(static_cast<std::uint16_t>(half + 1)));
    const float tie = 0.5f * low + 0.5f * high;
    for (const float value : {std::nextafterf(tie, low), tie, std::nextafterf(tie, high)})
      floats.push_back(value);
  }
  std::vector<Half> got(floats.size());
  convert_run(floats.data(), got.data(), static_cast<std::int64_t>(floats.size()));
  for (std::size_t i = 0; i < floats.size(); ++i) {
    const Half expected = static_cast<Half>(floats[i]);
    if (std::isnan(floats[i])) {
      ASSERT_TRUE(std::isnan(static_cast<float>(got[i])));
    } else {
      ASSERT_EQ(std::bit_cast<std::uint16_t>(got[i]), std::bit_cast<std::uint16_t>(expected)) << floats[i];
    }
  }
}

TEST(Convert, FloatsAreRoundedToNearestEven) {
  expect_same_rounding_as_eigen<bf16>();
  expect_same_rounding_as_eigen<f16>();
}

TEST(Block, LoadsAndStoresEveryStride) {
  const Tensor memory = integers({40, 50}, {.low = -100, .high = 100});
  const std::vector<float> values = memory.to_vector<float>();
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i8, DType::i64}) {
    const Tensor typed = memory.to(dtype);
    for (const auto& [row_stride, col_stride] : {std::pair<std::int64_t, std::int64_t>{50, 1},
                                                 {1, 50},
                                                 {7, 1},
                                                 {50, 2},
                                                 {0, 1},
                                                 {1, 0},
                                                 {0, 0},
                                                 {3, 7}}) {
      cpu::Block block{typed.data_ptr(), dtype, 7, 20, row_stride, col_stride};
      float buffer[140];
      const float* loaded = cpu::load(block, buffer);
      for (int r = 0; r < 7; ++r) {
        for (int c = 0; c < 20; ++c) {
          ASSERT_EQ(loaded[r * 20 + c], values[static_cast<std::size_t>(r * row_stride + c * col_stride)]);
        }
      }
    }
  }
  const Tensor target = poisoned({40, 50}, DType::f16);
  float numbers[140];
  for (int i = 0; i < 140; ++i) numbers[i] = static_cast<float>(i);
  cpu::store(numbers, {target.data_ptr(), DType::f16, 7, 20, 50, 2});
  const std::vector<float> stored = target.to_vector<float>();
  for (int r = 0; r < 7; ++r) {
    for (int c = 0; c < 50; ++c) {
      const float got = stored[static_cast<std::size_t>(r * 50 + c)];
      const bool written = c % 2 == 0 && c < 40;
      EXPECT_TRUE(written ? got == static_cast<float>(r * 20 + c / 2) : std::isnan(got)) << r << ", " << c;
    }
  }
}

// --- the loop ---

// Up to four dimensions, every subset of them broadcast in the second operand, two memory orders.
TEST(Elementwise, EveryBroadcastOfFourDimensions) {
  const Shape shape{3, 5, 4, 37};
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Tensor a = integers(shape, {.dtype = dtype, .low = -8, .high = 8});
    for (int mask = 0; mask < 16; ++mask) {
      Shape part = shape;
      for (int dim = 0; dim < 4; ++dim) {
        if (mask & (1 << dim)) part[dim] = 1;
      }
      const Tensor b = integers(part, {.dtype = dtype, .low = -8, .high = 8, .seed = 2});
      const std::vector<double> expected = map(a, b, [](double x, double y) { return x * y; });
      for (const Dims& order : {Dims{0, 1, 2, 3}, Dims{2, 0, 3, 1}}) {
        Dims inverse = order;
        for (int i = 0; i < 4; ++i) inverse[static_cast<int>(order[i])] = i;
        const Tensor turned = a.permute(order).contiguous().permute(inverse);
        const Tensor y = poisoned(shape, dtype),
                     y_turned = poisoned(turned.permute(order).shape(), dtype).permute(inverse);
        const Tensor expanded = b.expand(shape);
        cpu::binary(BinaryOp::mul, DType::f32, shape, operand(y), operand(turned), operand(expanded));
        cpu::binary(BinaryOp::mul, DType::f32, shape, operand(y_turned), operand(turned), operand(expanded));
        ASSERT_TRUE(near(y, expected)) << mask;
        ASSERT_TRUE(near(y_turned, expected)) << mask;
      }
    }
  }
}

TEST(Elementwise, SizesAroundBlocksAndThreads) {
  for (const std::int64_t n :
       {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025, 8191, 8192, 8193, 16384, 40000}) {
    for (DType dtype : {DType::f32, DType::f16, DType::f64}) {
      for (Layout layout : kLayouts) {
        const Tensor x = in_layout(integers({n}, {.dtype = dtype, .low = -20, .high = 20}), layout);
        const Tensor y = in_layout(poisoned({n}, dtype), layout);
        cpu::unary(UnaryOp::square, dtype == DType::f64 ? DType::f64 : DType::f32, {n}, operand(y),
                   operand(x));
        ASSERT_TRUE(near(y, map(x, [](double v) { return v * v; }))) << n << name_of(layout);
      }
    }
  }
}

TEST(Elementwise, WritesNothingBetweenItsElements) {
  const Tensor memory = poisoned({10, 100}, DType::f32);
  const Tensor y = memory.slice(0, 1, 9, 2).slice(1, 3, 99, 3);
  const Tensor x = integers(y.shape());
  cpu::unary(UnaryOp::neg, DType::f32, y.shape(), operand(y), operand(x));
  EXPECT_TRUE(near(y, map(x, [](double v) { return -v; })));
  int poison = 0;
  for (const float value : memory.to_vector<float>()) poison += std::isnan(value) ? 1 : 0;
  EXPECT_EQ(poison, 1000 - y.numel());
}

TEST(Elementwise, InPlaceOnEitherInput) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (Layout layout : kLayouts) {
      const Tensor a = integers({50, 60}, {.dtype = dtype, .low = -9, .high = 9}),
                   b = integers({50, 60}, {.dtype = dtype, .low = -9, .high = 9, .seed = 2});
      const std::vector<double> expected = map(a, b, [](double x, double y) { return x - y; });
      const Tensor first = in_layout(a, layout), second = in_layout(b, layout);
      cpu::binary(BinaryOp::sub, DType::f32, a.shape(), operand(first), operand(first), operand(second));
      EXPECT_TRUE(near(first, expected)) << name_of(layout);
      cpu::binary(BinaryOp::sub, DType::f32, a.shape(), operand(second), operand(in_layout(a, layout)),
                  operand(second));
      EXPECT_TRUE(near(second, expected)) << name_of(layout);
    }
  }
}

TEST(Elementwise, SameBitsEveryTime) {
  const Tensor x = uniform({301, 503}, {.low = -9, .high = 9});
  const Tensor first = poisoned(x.shape(), DType::f32), second = poisoned(x.shape(), DType::f32);
  for (const UnaryOp op : {UnaryOp::exp, UnaryOp::gelu_erf, UnaryOp::tanh}) {
    cpu::unary(op, DType::f32, x.shape(), operand(first), operand(x));
    // Rows one after another: other blocks, other vector tails, the same elements.
    for (std::int64_t row = 0; row < 301; ++row) {
      cpu::unary(op, DType::f32, {503}, operand(second.select(0, row)), operand(x.select(0, row)));
    }
    EXPECT_TRUE(equal_bits(first, second));
  }
}

// --- reductions, below the ops ---

TEST(Reduce, WritesEveryResultAndOnlyThose) {
  const Tensor x = integers({700, 300}, {.low = 0, .high = 4});
  const Tensor y = poisoned({302}, DType::f32);
  ReduceArgs args{.shape = x.shape(), .x = operand(x), .y = y.data<float>() + 1};
  args.reduced[0] = true;
  const Tensor workspace = poisoned({cpu::reduce_workspace(args)}, DType::f32);
  cpu::reduce(args, workspace.data_ptr());
  const std::vector<float> got = y.to_vector<float>();
  EXPECT_TRUE(std::isnan(got.front()) && std::isnan(got.back()));
  const std::vector<float> values = x.to_vector<float>();
  for (std::size_t c = 0; c < 300; ++c) {
    float expected = 0;
    for (std::size_t r = 0; r < 700; ++r) expected += values[r * 300 + c];
    ASSERT_EQ(got[c + 1], expected) << c;
  }
}

TEST(Reduce, SumsAreMoreAccurateThanARunningTotal) {
  // 0.1 a million times: a running fp32 total is off by about 1 %.
  const Tensor x = full({1000000}, 0.1f);
  const Tensor y = poisoned({1}, DType::f32);
  ReduceArgs args{.shape = x.shape(), .x = operand(x), .y = y.data_ptr()};
  args.reduced[0] = true;
  const Tensor workspace = poisoned({cpu::reduce_workspace(args)}, DType::f32);
  cpu::reduce(args, workspace.data_ptr());
  const double expected = 1e6 * static_cast<double>(0.1f);
  EXPECT_LE(std::fabs(y.item<double>() - expected), (25 + 20) * 0x1p-24 * expected);
}

}  // namespace
}  // namespace ergon::kernels
