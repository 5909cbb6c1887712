// What a convolution on tensor cores does, counted by the simulated GPU.

#include <gtest/gtest.h>

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/conv2d.h"
#include "simgpu/simgpu.h"

namespace ergon::kernels {
namespace {

// Without padding, so that no copy is filled up with zeros; of a size that divides the tiles.
constexpr Conv2dGeometry kGeometry{.batch = 2,
                                   .in_channels = 64,
                                   .out_channels = 64,
                                   .input = {18, 18},
                                   .kernel = {3, 3},
                                   .output = {16, 16}};
constexpr std::uint64_t kInput = 2 * 64 * 18 * 18, kOutput = 2 * 64 * 16 * 16, kWeight = 64 * 64 * 9;
constexpr std::uint64_t kProducts = kOutput * 64 * 9;

struct Operands {
  Tensor x, w, y;
};
Operands operands(DType dtype) {
  const TensorOptions options{.dtype = dtype, .device = Device::cuda()};
  return {ones({2, 64, 18, 18}, options), ones({64, 64, 3, 3}, options), ones({2, 64, 16, 16}, options)};
}

// The launches of a pass, by the order in which it makes them.
template <class F>
std::vector<simgpu::LaunchRecord> launches_of(Conv2dPass pass, DType dtype, const F& run) {
  const Tensor workspace =
      empty({cuda::conv2d_workspace(pass, dtype, kGeometry)}, {DType::u8, Device::cuda()});
  synchronize(Device::cuda());
  simgpu::clear_launches();
  run(workspace.data_ptr());
  synchronize(Device::cuda());
  return {simgpu::launches().begin(), simgpu::launches().end()};
}

void expect_full_sectors(const simgpu::LaunchRecord& launch, std::uint64_t loaded, std::uint64_t stored) {
  EXPECT_EQ(launch.counters.global_load_bytes, loaded) << launch.kernel;
  EXPECT_EQ(launch.counters.global_load_sectors * 32, loaded) << launch.kernel;
  EXPECT_EQ(launch.counters.global_store_bytes, stored) << launch.kernel;
  EXPECT_EQ(launch.counters.global_store_sectors * 32, stored) << launch.kernel;
}

// Every product of the convolution is part of an mma, and of three where fp32 is split.
void expect_products_by_mma(const simgpu::LaunchRecord& launch, DType dtype) {
  EXPECT_EQ(launch.counters.mma_flops, 2 * kProducts * (dtype == DType::f32 ? 3 : 1)) << launch.kernel;
  EXPECT_EQ(simgpu::main_loop(launch).work.bank_conflicts(), 0u) << launch.kernel;
}

constexpr std::uint64_t kTile = 64;

TEST(Conv2dCounters, ForwardReadsItsTilesInFullSectors) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const auto size = static_cast<std::uint64_t>(size_of(dtype));
    const Operands o = operands(dtype);
    const auto launches = launches_of(Conv2dPass::forward, dtype, [&](void* workspace) {
      cuda::conv2d_forward(dtype, kGeometry, o.x.data_ptr(), o.w.data_ptr(), nullptr, o.y.data_ptr(),
                           workspace);
    });
    ASSERT_EQ(launches.size(), 3u);
    EXPECT_EQ(launches[0].counters.global_load_bytes, kInput * size);
    EXPECT_EQ(launches[0].counters.global_store_bytes, kInput * size);
    EXPECT_EQ(launches[0].counters.global_store_sectors * 32, kInput * size);
    EXPECT_EQ(launches[1].counters.global_load_bytes, kWeight * size);
    expect_products_by_mma(launches[2], dtype);
    expect_full_sectors(launches[2], kOutput / 64 / kTile * (2 * kTile) * 64 * 9 * size, kOutput * size);
  }
}

TEST(Conv2dCounters, BackwardCopiesTheGradientOnceInFullSectors) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const auto size = static_cast<std::uint64_t>(size_of(dtype));
    const Operands o = operands(dtype);
    const auto launches = launches_of(Conv2dPass::backward_input, dtype, [&](void* workspace) {
      cuda::conv2d_backward_input(dtype, kGeometry, o.y.data_ptr(), o.w.data_ptr(), o.x.data_ptr(),
                                  workspace);
    });
    ASSERT_EQ(launches.size(), 3u);
    expect_full_sectors(launches[0], kOutput * size, kOutput * size);
    EXPECT_EQ(launches[0].counters.bank_conflicts(), 0u);
    EXPECT_EQ(simgpu::main_loop(launches[2]).work.bank_conflicts(), 0u);
    EXPECT_EQ(launches[2].counters.global_store_bytes, kInput * size);
  }
}

TEST(Conv2dCounters, TheWeightsGradientReadsItsTilesInFullSectors) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const auto size = static_cast<std::uint64_t>(size_of(dtype));
    const Operands o = operands(dtype);
    const auto launches = launches_of(Conv2dPass::backward_weight, dtype, [&](void* workspace) {
      cuda::conv2d_backward_weight(dtype, kGeometry, o.x.data_ptr(), o.y.data_ptr(), o.w.data_ptr(),
                                   workspace);
    });
    ASSERT_EQ(launches.size(), 4u);
    const std::uint64_t splits = launches[2].grid.y, pixels = kOutput / 64;
    expect_products_by_mma(launches[2], dtype);
    expect_full_sectors(launches[2], 9 * (2 * kTile) * pixels * size, splits * kWeight * 4);
    EXPECT_EQ(launches[3].counters.global_load_bytes, splits * kWeight * 4);
    EXPECT_EQ(launches[3].counters.global_load_sectors * 32, splits * kWeight * 4);
    EXPECT_EQ(launches[3].counters.global_store_bytes, kWeight * size);
  }
}

}  // namespace
}  // namespace ergon::kernels
