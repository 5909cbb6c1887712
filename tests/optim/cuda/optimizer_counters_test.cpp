// How an optimiser's step goes to the device, by the simulated GPU's counters.

#include <gtest/gtest.h>

#include "core/stream.h"
#include "optim/adamw.h"
#include "optim/clip_grad.h"
#include "optim/grad_scaler.h"
#include "simgpu/simgpu.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

const Device kCuda = Device::cuda();

std::vector<simgpu::LaunchRecord> launches_of(const std::function<void()>& run) {
  synchronize(kCuda);
  simgpu::clear_launches();
  run();
  synchronize(kCuda);
  return {simgpu::launches().begin(), simgpu::launches().end()};
}

TEST(OptimizerCounters, OneLaunchForAllTensorsMovesEachNumberOnce) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    NamedTensors params;
    std::vector<Tensor> tensors;
    std::uint64_t numel = 0;
    for (int i = 0; i < 600; ++i) {  // more than fit in a kernel's parameters; one in several chunks
      const std::int64_t size = i == 300 ? 40960 : 64;
      Tensor param = full({size}, 1, {dtype, kCuda}).set_requires_grad(true);
      param.set_grad(full({size}, 1, {dtype, kCuda}));
      params.emplace_back("p" + std::to_string(i), param);
      tensors.push_back(param);
      numel += static_cast<std::uint64_t>(size);
    }
    optim::AdamW optimizer(params, {.lr = 0.5, .weight_decay = 0});
    const auto step = launches_of([&] { optimizer.step(); });
    ASSERT_EQ(step.size(), 1u);
    const simgpu::Counters& counters = step[0].counters;
    const auto size = static_cast<std::uint64_t>(size_of(dtype));
    EXPECT_EQ(counters.global_store_sectors * 32, numel * (size + 8));
    // Beside the data each warp reads the list: a binary search of ten steps and one tensor's entry.
    EXPECT_GE(counters.global_load_sectors * 32, numel * (2 * size + 8));
    EXPECT_LE(counters.global_load_sectors * 32, numel * (2 * size + 8) + counters.warps * 24 * 32);
    for (const Tensor& param : tensors) {
      EXPECT_TRUE(test::near(param, full(param.shape(), 0.5, {DType::f64}), {.atol = 2 * 0x1p-24}));
    }

    double norm = 0;
    const auto square = launches_of([&] { norm = optim::grad_norm(tensors); });
    EXPECT_EQ(square.size(), 1u);
    EXPECT_NEAR(norm, std::sqrt(static_cast<double>(numel)), 1e-9);
  }
}

// Parameters of one size, all with gradients of 1.
NamedTensors some_parameters(int count, std::int64_t size, DType dtype) {
  NamedTensors params;
  for (int i = 0; i < count; ++i) {
    Tensor param = full({size}, 1, {dtype, kCuda}).set_requires_grad(true);
    param.set_grad(full({size}, 1, {dtype, kCuda}));
    params.emplace_back("p" + std::to_string(i), param);
  }
  return params;
}

TEST(OptimizerCounters, MastersAndEightBitStatesGoInOneLaunchToo) {
  constexpr std::uint64_t kNumel = 3 * 16384;
  const NamedTensors params = some_parameters(3, 16384, DType::bf16);
  optim::AdamW optimizer(params, {.master_weights = true, .state_dtype = DType::u8});
  const auto step = launches_of([&] { optimizer.step(); });
  ASSERT_EQ(step.size(), 1u);
  const simgpu::Counters& counters = step[0].counters;
  // Stored: parameter 2, master 4, two codes, and a sector a warp's row for each of two scales.
  EXPECT_EQ(counters.global_store_sectors * 32, kNumel * 8 + kNumel / 256 * 2 * 32);
  // Loaded: gradient 2, master 4, two codes, the scales, the list, the tables of values.
  const std::uint64_t loaded = kNumel * 8 + kNumel / 256 * 2 * 32;
  EXPECT_GE(counters.global_load_sectors * 32, loaded);
  EXPECT_LE(counters.global_load_sectors * 32, loaded + counters.warps * 32 * 32);
}

TEST(OptimizerCounters, ScalerChecksAndStepsInOneLaunchEach) {
  for (const int count : {1, 200}) {
    const NamedTensors params = some_parameters(count, 40, DType::f32);
    optim::AdamW optimizer(params);
    optim::GradScaler scaler;
    scaler.scale(full({}, 1, {.device = kCuda}));  // the scale goes to the device
    EXPECT_EQ(launches_of([&] { scaler.step(optimizer, {.max_norm = 1}); }).size(), 2u);
    EXPECT_EQ(launches_of([&] { scaler.update(); }).size(), 1u);
  }
}

}  // namespace
}  // namespace ergon
