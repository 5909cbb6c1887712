// What pooling moves, counted by the simulated GPU.

#include <gtest/gtest.h>

#include "core/tensor.h"
#include "kernels/pooling.h"
#include "tests/support/launch_counters.h"

namespace ergon::kernels {
namespace {

constexpr Pool2dGeometry kGeometry{
    .planes = 6, .input = {16, 32}, .kernel = {2, 2}, .output = {8, 16}, .stride = {2, 2}};
constexpr std::uint64_t kInput = 6 * 16 * 32, kOutput = 6 * 8 * 16;

// Windows that do not overlap: the elements of x and dout once, and of dx one store each in full sectors. The
// columns of a window are requests of their own for the same sectors, which L1 has by then.
TEST(PoolingCounters, EveryElementIsMovedOnce) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const TensorOptions options{.dtype = dtype, .device = Device::cuda()};
    const auto size = static_cast<std::uint64_t>(size_of(dtype));
    const Tensor x = ones({6, 16, 32}, options), y = empty({6, 8, 16}, options),
                 index = empty({6, 8, 16}, {DType::i32, Device::cuda()});
    auto* places = static_cast<std::int32_t*>(index.data_ptr());
    const auto max = test::counters_of(
        [&] { cuda::max_pool2d_forward(dtype, kGeometry, x.data_ptr(), y.data_ptr(), places); });
    EXPECT_EQ(max.global_load_bytes, (kInput + kOutput) * size);  // the first of each window twice
    EXPECT_LE(max.global_load_sectors * 32, 3 * kInput * size);
    EXPECT_EQ(max.global_store_bytes, kOutput * (size + 4));
    EXPECT_EQ(max.global_store_sectors * 32, kOutput * (size + 4));
    const auto average =
        test::counters_of([&] { cuda::avg_pool2d_forward(dtype, kGeometry, x.data_ptr(), y.data_ptr()); });
    EXPECT_EQ(average.global_load_bytes, kInput * size);
    EXPECT_LE(average.global_load_sectors * 32, 2 * kInput * size);
    EXPECT_EQ(average.global_store_sectors * 32, kOutput * size);

    const auto max_back = test::counters_of(
        [&] { cuda::max_pool2d_backward(dtype, kGeometry, y.data_ptr(), places, x.data_ptr()); });
    EXPECT_EQ(max_back.global_load_bytes, kInput * 4 + kOutput * size);
    EXPECT_EQ(max_back.global_store_sectors * 32, kInput * size);
    const auto average_back =
        test::counters_of([&] { cuda::avg_pool2d_backward(dtype, kGeometry, y.data_ptr(), x.data_ptr()); });
    EXPECT_EQ(average_back.global_store_sectors * 32, kInput * size);
  }
}

}  // namespace
}  // namespace ergon::kernels
