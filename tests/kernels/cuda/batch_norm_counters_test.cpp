// What batch normalisation moves, by the simulated GPU's counters.

#include <gtest/gtest.h>

#include "core/stream.h"
#include "kernels/batch_norm.h"
#include "simgpu/simgpu.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

const Device kCuda = Device::cuda();

// The launches of one call, in order.
std::vector<simgpu::Counters> launches_of(const std::function<void()>& run) {
  synchronize(kCuda);
  simgpu::clear_launches();
  run();
  synchronize(kCuda);
  std::vector<simgpu::Counters> counters;
  for (const simgpu::LaunchRecord& launch : simgpu::launches()) counters.push_back(launch.counters);
  return counters;
}

// Images are read in whole sectors; beside them a block reads at most 4 KiB that belong to its channel.
void expect_loads(const simgpu::Counters& counters, std::int64_t images) {
  const auto whole = static_cast<std::uint64_t>(images);
  EXPECT_GE(counters.global_load_bytes, whole);
  EXPECT_LE(counters.global_load_bytes, whole + counters.blocks * 4096);
  EXPECT_LE(counters.global_load_sectors * 32, whole + counters.blocks * 4096);
}

TEST(BatchNormCounters, ForwardReadsImagesTwiceAndBackwardBothTwice) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::int64_t batch = 4, channels = 3, positions = 64 * 72;  // two pieces a channel
    const Tensor x = uniform({batch, channels, positions}, {.dtype = dtype}).to(kCuda),
                 dout = uniform(x.shape(), {.dtype = dtype, .seed = 2}).to(kCuda),
                 y = poisoned(x.shape(), dtype).to(kCuda), dx = poisoned(x.shape(), dtype).to(kCuda);
    const Tensor vectors = poisoned({5, channels}, DType::f32).to(kCuda);
    const auto vector = [&](int i) { return vectors.select(0, i).data_ptr(); };
    const Tensor workspace =
        empty({cuda::batch_norm_workspace(batch, channels, positions)}, {DType::f32, kCuda});
    EXPECT_EQ(workspace.numel(), 2 * channels * 2);

    auto launches = launches_of([&] {
      cuda::batch_norm_forward({.dtype = dtype,
                                .batch = batch,
                                .channels = channels,
                                .positions = positions,
                                .x = x.data_ptr(),
                                .mean = vector(0),
                                .var = vector(1),
                                .rstd = vector(2),
                                .y = y.data_ptr(),
                                .workspace = workspace.data_ptr()});
    });
    ASSERT_EQ(launches.size(), 2u);
    EXPECT_EQ(launches[0].global_load_bytes, static_cast<std::uint64_t>(x.nbytes()));
    EXPECT_EQ(launches[0].global_load_sectors * 32, static_cast<std::uint64_t>(x.nbytes()));
    EXPECT_EQ(launches[0].global_store_bytes, static_cast<std::uint64_t>(workspace.nbytes()));
    expect_loads(launches[1], x.nbytes());
    EXPECT_EQ(launches[1].global_store_bytes, static_cast<std::uint64_t>(y.nbytes() + 3 * channels * 4));

    launches = launches_of([&] {
      cuda::batch_norm_backward({.dtype = dtype,
                                 .batch = batch,
                                 .channels = channels,
                                 .positions = positions,
                                 .dout = dout.data_ptr(),
                                 .x = x.data_ptr(),
                                 .mean = vector(0),
                                 .rstd = vector(2),
                                 .dx = dx.data_ptr(),
                                 .dweight = vector(3),
                                 .dbias = vector(4),
                                 .workspace = workspace.data_ptr()});
    });
    ASSERT_EQ(launches.size(), 2u);
    for (const simgpu::Counters& counters : launches) expect_loads(counters, dout.nbytes() + x.nbytes());
    EXPECT_EQ(launches[1].global_store_bytes, static_cast<std::uint64_t>(dx.nbytes() + 2 * channels * 4));
  }
}

}  // namespace
}  // namespace ergon::kernels
