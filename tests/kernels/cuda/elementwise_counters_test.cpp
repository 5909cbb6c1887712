// What the elementwise kernels move, by the simulated GPU's counters, and that they are right where they
// cannot go in vectors.

#include <gtest/gtest.h>

#include "kernels/elementwise.h"
#include "tests/support/launch_counters.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

const Device kCuda = Device::cuda();

Operand operand(const Tensor& tensor, const Shape& shape) {
  const Tensor expanded = tensor.expand(shape);
  return {expanded.data_ptr(), tensor.dtype(), expanded.strides()};
}

Tensor numbers(const Shape& shape, DType dtype, std::uint64_t seed = 1) {
  return integers(shape, {.dtype = dtype, .low = 0, .high = 2, .seed = seed}).to(kCuda);
}

// Reads `loads` and writes `stores` bytes, using every byte of every 32-byte sector that it touches.
void expect_traffic(const simgpu::Counters& counters, std::int64_t loads, std::int64_t stores) {
  EXPECT_EQ(counters.global_load_bytes, static_cast<std::uint64_t>(loads));
  EXPECT_EQ(counters.global_load_sectors * 32, static_cast<std::uint64_t>(loads));
  EXPECT_EQ(counters.global_store_bytes, static_cast<std::uint64_t>(stores));
  EXPECT_EQ(counters.global_store_sectors * 32, static_cast<std::uint64_t>(stores));
}

struct Dtypes {
  DType y, a, b, compute;
};
constexpr Dtypes kBinaries[] = {
    {DType::f32, DType::f32, DType::f32, DType::f32},
    {DType::bf16, DType::bf16, DType::bf16, DType::f32},
    {DType::f16, DType::f16, DType::f16, DType::f32},
    {DType::f32, DType::bf16, DType::f32, DType::f32},
    {DType::bf16, DType::f32, DType::f16, DType::f32},
    {DType::boolean, DType::bf16, DType::bf16, DType::f32},
    {DType::boolean, DType::f32, DType::f32, DType::f32},
    {DType::f64, DType::f64, DType::f64, DType::f64},
    {DType::i64, DType::i64, DType::i32, DType::i64},
};

TEST(ElementwiseCounters, EveryElementIsMovedOnceInFullSectors) {
  const Shape shape{16, 512};
  for (const Dtypes& dtypes : kBinaries) {
    const Tensor y = poisoned(shape, dtypes.y).to(kCuda), a = numbers(shape, dtypes.a),
                 b = numbers(shape, dtypes.b, 2);
    const auto counters = counters_of([&] {
      cuda::binary(BinaryOp::mul, dtypes.compute, shape, operand(y, shape), operand(a, shape),
                   operand(b, shape));
    });
    SCOPED_TRACE(std::string(ergon::name_of(dtypes.a)) + " " + std::string(ergon::name_of(dtypes.b)));
    expect_traffic(counters, a.nbytes() + b.nbytes(), y.nbytes());
    EXPECT_TRUE(near(y, map(a, b, std::multiplies<double>())));
  }
}

TEST(ElementwiseCounters, VectorsAreOf16BytesOfTheWidestOperand) {
  const Shape shape{16, 512};
  for (const auto& [dtype, width] : {std::pair{DType::f32, 4}, {DType::bf16, 8}, {DType::f64, 1}}) {
    const Tensor y = poisoned(shape, dtype).to(kCuda), x = numbers(shape, dtype);
    const DType compute = dtype == DType::f64 ? DType::f64 : DType::f32;
    const auto counters = counters_of(
        [&] { cuda::unary(UnaryOp::square, compute, shape, operand(y, shape), operand(x, shape)); });
    EXPECT_EQ(counters.global_load_requests, static_cast<std::uint64_t>(shape[0] * shape[1] / width / 32));
  }
}

TEST(ElementwiseCounters, NumbersAreNotReadFromMemory) {
  const Shape shape{2048};
  const Tensor y = poisoned(shape, DType::bf16).to(kCuda), x = numbers(shape, DType::bf16);
  double two = 2;
  const Operand number{&two, DType::f64, {0}, true};
  const auto counters = counters_of([&] {
    cuda::binary(BinaryOp::add, DType::f32, shape, operand(y, shape), operand(x, shape), number);
    two = 7;  // it has been read
  });
  expect_traffic(counters, x.nbytes(), y.nbytes());
  EXPECT_TRUE(near(y, map(x, [](double v) { return v + 2; })));
}

TEST(ElementwiseCounters, BroadcastRowsGoInVectorsAndColumnsOnceAVector) {
  const Shape shape{16, 512};
  const std::int64_t bytes = 16 * 512 * 4;
  const Tensor y = poisoned(shape, DType::f32).to(kCuda), a = numbers(shape, DType::f32),
               row = numbers({512}, DType::f32, 2), column = numbers({16, 1}, DType::f32, 3);
  auto counters = counters_of([&] {
    cuda::binary(BinaryOp::add, DType::f32, shape, operand(y, shape), operand(a, shape), operand(row, shape));
  });
  expect_traffic(counters, 2 * bytes, bytes);
  EXPECT_TRUE(near(y, map(a, row, std::plus<double>())));
  counters = counters_of([&] {
    cuda::binary(BinaryOp::add, DType::f32, shape, operand(y, shape), operand(a, shape),
                 operand(column, shape));
  });
  EXPECT_EQ(counters.global_load_bytes, static_cast<std::uint64_t>(bytes + bytes / 4));
  EXPECT_TRUE(near(y, map(a, column, std::plus<double>())));
}

TEST(ElementwiseCounters, TernaryOpsMoveTheConditionToo) {
  const Shape shape{8, 256};
  const Tensor y = poisoned(shape, DType::bf16).to(kCuda), condition = numbers(shape, DType::boolean),
               a = numbers(shape, DType::bf16, 2), b = numbers(shape, DType::bf16, 3);
  const auto counters = counters_of([&] {
    cuda::ternary(TernaryOp::where, DType::f32, shape, operand(y, shape), operand(condition, shape),
                  operand(a, shape), operand(b, shape));
  });
  expect_traffic(counters, condition.nbytes() + a.nbytes() + b.nbytes(), y.nbytes());
}

// An element past an aligned address, odd rows, every tail: the results are right all the same.
TEST(ElementwiseCounters, WhatDoesNotFitVectorsIsRight) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Shape& shape : {Shape{1}, Shape{7}, Shape{8}, Shape{2049}, Shape{3, 65}, Shape{5, 64}}) {
      for (const Layout of_y : kLayouts) {
        for (const Layout of_x : kLayouts) {
          const Tensor x = in_layout(numbers(shape, dtype), of_x),
                       y = in_layout(poisoned(shape, dtype).to(kCuda), of_y);
          cuda::unary(UnaryOp::neg, DType::f32, shape, operand(y, shape), operand(x, shape));
          EXPECT_TRUE(near(y, map(x, [](double v) { return -v; })))
              << to_string(shape) << " " << name_of(of_y) << " " << name_of(of_x);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ergon::kernels
