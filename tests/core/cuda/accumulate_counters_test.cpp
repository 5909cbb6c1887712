// Sums into tensors of a CUDA device, as gradients are accumulated: against the CPU's, and what they move.

#include <gtest/gtest.h>

#include "core/copy.h"
#include "tests/support/launch_counters.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

const Device kCuda = Device::cuda();

TEST(DeviceAccumulate, GoesIn16ByteVectorsInFullSectors) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const Tensor sum = zeros({16, 512}, {dtype, kCuda}), source = ones({16, 512}, {dtype, kCuda});
    const simgpu::Counters counters = test::counters_of([&] { detail::accumulate(sum, source); });
    const auto bytes = static_cast<std::uint64_t>(sum.nbytes());
    EXPECT_EQ(counters.global_load_bytes, 2 * bytes);
    EXPECT_EQ(counters.global_load_sectors * 32, 2 * bytes);
    EXPECT_EQ(counters.global_load_requests, 2 * bytes / 512);
    EXPECT_EQ(counters.global_store_bytes, bytes);
    EXPECT_TRUE(test::near(sum, source));
  }
}

TEST(DeviceAccumulate, MatchesTheCpuForEveryLayoutAndRepeat) {
  const Shape shape{3, 6, 16};
  for (const DType dtype : test::kFloatingDTypes) {
    for (const test::Layout layout : test::kLayouts) {
      for (const Shape& kept : {shape, Shape{6, 16}, Shape{3, 1, 16}, Shape{6, 1}, Shape{}}) {
        const Tensor source = test::integers(shape, {.dtype = dtype, .low = -4, .high = 4}),
                     start = test::integers(kept, {.dtype = dtype, .low = -4, .high = 4, .seed = 2});
        const Tensor there = test::in_layout(start, layout), here = start.to(Device::cpu()).clone();
        detail::accumulate(there.expand(shape), test::in_layout(source, layout));
        detail::accumulate(here.expand(shape), source.to(Device::cpu()));
        EXPECT_TRUE(equal_bits(there, here)) << to_string(kept) << " " << test::name_of(layout);
      }
    }
  }
}

}  // namespace
}  // namespace ergon
