// Code that nobody here wrote: the device headers of the CUDA toolkit must compute what they promise.
#include <algorithm>
#include <numeric>
#include <random>

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cub/cub.cuh>

#include "support.h"

namespace cg = cooperative_groups;

namespace {

constexpr int kThreads = 128;

std::vector<int> random_values(size_t n) {
  std::mt19937 random(7);
  std::vector<int> values(n);
  for (int& v : values) v = static_cast<int>(random() % 200001) - 100000;
  return values;
}

template <cub::BlockReduceAlgorithm kAlgorithm>
__global__ void block_reduce(const int* in, int* sums, int* maxima) {
  using Reduce = cub::BlockReduce<int, kThreads, kAlgorithm>;
  __shared__ typename Reduce::TempStorage storage;
  const int value = in[blockIdx.x * kThreads + threadIdx.x];
  const int sum = Reduce(storage).Sum(value);
  __syncthreads();
  const int maximum = Reduce(storage).Reduce(value, [](int a, int b) { return a > b ? a : b; });
  if (threadIdx.x == 0) sums[blockIdx.x] = sum, maxima[blockIdx.x] = maximum;
}
template <cub::BlockReduceAlgorithm kAlgorithm>
void expect_block_reduce() {
  const std::vector<int> in = random_values(16 * kThreads);
  DeviceArray<int> device(in), sums(16), maxima(16);
  block_reduce<kAlgorithm><<<16, kThreads>>>(device, sums, maxima);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<int> s = sums.host(), m = maxima.host();
  for (int b = 0; b < 16; ++b) {
    EXPECT_EQ(s[b], std::accumulate(in.begin() + b * kThreads, in.begin() + (b + 1) * kThreads, 0)) << b;
    EXPECT_EQ(m[b], *std::max_element(in.begin() + b * kThreads, in.begin() + (b + 1) * kThreads)) << b;
  }
}
TEST(Cub, BlockReduceWarpReductions) { expect_block_reduce<cub::BLOCK_REDUCE_WARP_REDUCTIONS>(); }
TEST(Cub, BlockReduceRaking) { expect_block_reduce<cub::BLOCK_REDUCE_RAKING>(); }

template <cub::BlockScanAlgorithm kAlgorithm>
__global__ void block_scan(const int* in, int* inclusive, int* exclusive) {
  using Scan = cub::BlockScan<int, kThreads, kAlgorithm>;
  __shared__ typename Scan::TempStorage storage;
  int sum;
  Scan(storage).InclusiveSum(in[threadIdx.x], sum);
  inclusive[threadIdx.x] = sum;
  __syncthreads();
  Scan(storage).ExclusiveSum(in[threadIdx.x], sum);
  exclusive[threadIdx.x] = sum;
}
template <cub::BlockScanAlgorithm kAlgorithm>
void expect_block_scan() {
  const std::vector<int> in = random_values(kThreads);
  DeviceArray<int> device(in), inclusive(kThreads), exclusive(kThreads);
  block_scan<kAlgorithm><<<1, kThreads>>>(device, inclusive, exclusive);
  CUDA_OK(cudaDeviceSynchronize());
  std::vector<int> expected(kThreads);
  std::partial_sum(in.begin(), in.end(), expected.begin());
  EXPECT_EQ(inclusive.host(), expected);
  for (int i = 0; i < kThreads; ++i) expected[i] -= in[i];
  EXPECT_EQ(exclusive.host(), expected);
}
TEST(Cub, BlockScanRaking) { expect_block_scan<cub::BLOCK_SCAN_RAKING>(); }
TEST(Cub, BlockScanWarpScans) { expect_block_scan<cub::BLOCK_SCAN_WARP_SCANS>(); }

template <int kWidth>
__global__ void warp_reduce(const int* in, int* out) {
  using Reduce = cub::WarpReduce<int, kWidth>;
  __shared__ typename Reduce::TempStorage storage[kThreads / kWidth];
  const int group = threadIdx.x / kWidth;
  const int sum = Reduce(storage[group]).Sum(in[threadIdx.x]);
  if (threadIdx.x % kWidth == 0) out[group] = sum;
}
template <int kWidth>
void expect_warp_reduce() {
  const std::vector<int> in = random_values(kThreads);
  DeviceArray<int> device(in), out(kThreads / kWidth);
  warp_reduce<kWidth><<<1, kThreads>>>(device, out);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<int> sums = out.host();
  for (size_t g = 0; g < sums.size(); ++g)
    EXPECT_EQ(sums[g], std::accumulate(in.begin() + g * kWidth, in.begin() + (g + 1) * kWidth, 0));
}
TEST(Cub, WarpReduce32) { expect_warp_reduce<32>(); }
TEST(Cub, WarpReduce8) { expect_warp_reduce<8>(); }

TEST(Cub, DeviceRadixSortPairs) {
  for (const size_t n : {1000u, 20000u}) {  // one tile, and several passes of many blocks
    const std::vector<int> keys = random_values(n);
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    DeviceArray<int> in(keys), out(n), values(order), sorted_values(n);
    size_t bytes = 0;
    const auto sort = [&](void* storage) {
      return cub::DeviceRadixSort::SortPairs(storage, bytes, in.data(), out.data(), values.data(),
                                             sorted_values.data(), static_cast<int>(n));
    };
    CUDA_OK(sort(nullptr));
    DeviceArray<char> storage(bytes);
    CUDA_OK(sort(storage));
    CUDA_OK(cudaDeviceSynchronize());
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return keys[a] < keys[b]; });
    EXPECT_EQ(sorted_values.host(), order) << n;
    const std::vector<int> sorted = out.host();
    EXPECT_TRUE(std::is_sorted(sorted.begin(), sorted.end())) << n;
  }
}
TEST(Cub, DeviceReduce) {
  for (const size_t n : {1u, 777u, 50000u}) {
    const std::vector<int> values = random_values(n);
    DeviceArray<int> in(values), out(1);
    size_t bytes = 0;
    CUDA_OK(cub::DeviceReduce::Sum(nullptr, bytes, in.data(), out.data(), static_cast<int>(n)));
    DeviceArray<char> storage(bytes);
    CUDA_OK(cub::DeviceReduce::Sum(storage, bytes, in.data(), out.data(), static_cast<int>(n)));
    CUDA_OK(cudaDeviceSynchronize());
    EXPECT_EQ(out.host()[0], std::accumulate(values.begin(), values.end(), 0)) << n;
  }
}

__global__ void grid_sync(int* counter, int* seen) {
  const auto grid = cg::this_grid();
  atomicAdd(counter, 1);
  grid.sync();
  seen[grid.thread_rank()] = *counter;
}
TEST(CooperativeGroups, GridSync) {
  DeviceArray<int> counter(std::vector<int>{0}), seen(8 * 64);
  int *c = counter, *s = seen;
  void* arguments[] = {&c, &s};
  CUDA_OK(
      cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_sync), 8, 64, arguments, 0, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(seen.host(), std::vector<int>(8 * 64, 8 * 64));
}
TEST(CooperativeGroups, TooManyBlocksAreRefused) {
  int *c = nullptr, *s = nullptr;
  void* arguments[] = {&c, &s};
  EXPECT_EQ(cudaErrorCooperativeLaunchTooLarge,
            cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_sync), 108 * 2 + 1, 1024,
                                        arguments, 0, nullptr));
  EXPECT_EQ(cudaErrorCooperativeLaunchTooLarge, cudaGetLastError());
}

template <int kWidth>
__global__ void tile_collectives(const int* in, int* sums, int* scans) {
  const auto tile = cg::tiled_partition<kWidth>(cg::this_thread_block());
  sums[threadIdx.x] = cg::reduce(tile, in[threadIdx.x], cg::plus<int>());
  scans[threadIdx.x] = cg::inclusive_scan(tile, in[threadIdx.x], cg::plus<int>());
}
template <int kWidth>
void expect_tiles() {
  const std::vector<int> in = random_values(kThreads);
  DeviceArray<int> device(in), sums(kThreads), scans(kThreads);
  tile_collectives<kWidth><<<1, kThreads>>>(device, sums, scans);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<int> sum = sums.host(), scan = scans.host();
  for (int i = 0; i < kThreads; ++i) {
    const int first = i / kWidth * kWidth;
    EXPECT_EQ(sum[i], std::accumulate(in.begin() + first, in.begin() + first + kWidth, 0)) << i;
    EXPECT_EQ(scan[i], std::accumulate(in.begin() + first, in.begin() + i + 1, 0)) << i;
  }
}
TEST(CooperativeGroups, TilesOf16) { expect_tiles<16>(); }
TEST(CooperativeGroups, TilesOf4) { expect_tiles<4>(); }

__global__ void coalesced(const int* in, int* out) {
  if (in[threadIdx.x] % 3 == 0) {
    const auto active = cg::coalesced_threads();
    out[threadIdx.x] = active.size() * 100 + active.thread_rank();
  }
}
TEST(CooperativeGroups, CoalescedThreads) {
  std::vector<int> in(32);
  std::iota(in.begin(), in.end(), 0);
  DeviceArray<int> device(in), out(std::vector<int>(32, -1));
  coalesced<<<1, 32>>>(device, out);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<int> got = out.host();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(got[i], i % 3 == 0 ? 1100 + i / 3 : -1) << i;
}

}  // namespace
