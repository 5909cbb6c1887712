// What copies and fills of strided tensors move on a CUDA device, by the simulated GPU's counters.

#include <gtest/gtest.h>

#include "core/copy.h"
#include "tests/support/launch_counters.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

const Device kCuda = Device::cuda();

void expect_full(const simgpu::Counters& counters, std::int64_t loaded, std::int64_t stored) {
  EXPECT_EQ(counters.global_load_bytes, static_cast<std::uint64_t>(loaded));
  EXPECT_EQ(counters.global_load_sectors * 32, static_cast<std::uint64_t>(loaded));
  EXPECT_EQ(counters.global_store_bytes, static_cast<std::uint64_t>(stored));
  EXPECT_EQ(counters.global_store_sectors * 32, static_cast<std::uint64_t>(stored));
  EXPECT_EQ(counters.shared_wavefronts, counters.shared_ideal_wavefronts);
}

TEST(DeviceCopy, ConvertsInFullSectors) {
  const Tensor x = test::uniform({64, 96}).to(kCuda), y = empty({64, 96}, {DType::bf16, kCuda});
  expect_full(test::counters_of([&] { detail::copy(y, x); }), x.nbytes(), y.nbytes());
  EXPECT_TRUE(equal_bits(y.to(Device::cpu()), x.to(Device::cpu()).to(DType::bf16)));
}

TEST(DeviceCopy, MovesSlicesAndTransposesInFullSectors) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = test::uniform({64, 256}, {.dtype = dtype}).to(kCuda);
    const Tensor slice = x.slice(1, 64, 192), slice_copy = empty(slice.shape(), {dtype, kCuda});
    const simgpu::Counters sliced = test::counters_of([&] { detail::copy(slice_copy, slice); });
    expect_full(sliced, slice_copy.nbytes(), slice_copy.nbytes());
    EXPECT_EQ(sliced.global_load_requests,
              static_cast<std::uint64_t>(slice_copy.nbytes() / 512));  // 16 bytes a lane
    EXPECT_TRUE(equal_bits(slice_copy, slice));

    const Tensor turned = x.transpose(0, 1), turned_copy = empty(turned.shape(), {dtype, kCuda});
    expect_full(test::counters_of([&] { detail::copy(turned_copy, turned); }), x.nbytes(), x.nbytes());
    EXPECT_TRUE(equal_bits(turned_copy, turned));
  }
}

TEST(DeviceFill, GoesIn16ByteVectors) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i8, DType::boolean}) {
    const Tensor x = empty({16, 512}, {dtype, kCuda});
    const simgpu::Counters counters = test::counters_of([&] { detail::fill(x, 1); });
    expect_full(counters, 0, x.nbytes());
    EXPECT_EQ(counters.global_store_requests, static_cast<std::uint64_t>(x.nbytes() / 512));
    const Tensor part = x.slice(1, 1, 400);
    test::counters_of([&] { detail::fill(part, 0); });
    const Tensor here = ones({16, 512}, {dtype, Device::cpu()});
    detail::fill(here.slice(1, 1, 400), 0);
    EXPECT_TRUE(equal_bits(x, here)) << name_of(dtype);
  }
}

}  // namespace
}  // namespace ergon
