// What elementwise ops and reductions on device cuda refuse.

#include <gtest/gtest.h>

#include "ops/arithmetic.h"
#include "ops/batch_norm.h"
#include "ops/compare.h"
#include "ops/reduce.h"
#include "tests/support/reference.h"

namespace ergon::ops {
namespace {

using test::error_of;

const TensorOptions kOnCuda{.device = Device::cuda()};

TEST(CudaErrors, TensorsOnTwoDevicesAreNamed) {
  Tensor here = zeros({2, 3});
  const Tensor there = zeros({3}, kOnCuda), condition = zeros({3}, {DType::boolean, Device::cuda()});
  EXPECT_EQ(error_of([&] { add(here, there); }),
            "[add] operands (2, 3) f32 on cpu, (3,) f32 on cuda:0: expected one device");
  EXPECT_EQ(error_of([&] { here += there; }),
            "[add_] operands (2, 3) f32 on cpu, (3,) f32 on cuda:0: expected one device");
  EXPECT_EQ(error_of([&] { here *= there; }),
            "[mul_] operands (2, 3) f32 on cpu, (3,) f32 on cuda:0: expected one device");
  EXPECT_EQ(
      error_of([&] { where(condition, here, there); }),
      "[where] operands (3,) bool on cuda:0, (2, 3) f32 on cpu, (3,) f32 on cuda:0: expected one device");
  EXPECT_EQ(error_of([&] {
              batch_norm2d(zeros({2, 3, 1, 1}), there, {}, {}, {}, true);
            }),
            "[batch_norm2d] operands (2, 3, 1, 1) f32 on cpu, (3,) f32 on cuda:0: expected one device");
}

TEST(CudaErrors, TensorsTooLargeForAKernelNameTheOp) {
  const Tensor x = zeros({1, 1}, kOnCuda).expand({1 << 16, 1 << 16});
  EXPECT_EQ(
      error_of([&] { sum(x); }),
      "[sum] shape (65536, 65536) on cuda: 1 results of 4294967296 elements: expected fewer than 2^31 of "
      "both");
}

}  // namespace
}  // namespace ergon::ops
