// What the reductions move, by the simulated GPU's counters, and that they are right where they cannot go in
// vectors.

#include <array>

#include <gtest/gtest.h>

#include "core/stream.h"
#include "kernels/reduce.h"
#include "simgpu/simgpu.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

const Device kCuda = Device::cuda();

struct Result {
  Tensor y;
  std::int64_t workspace_bytes = 0;
  simgpu::Counters counters{};  // of all passes
};

// The sum over the first (columns) or last (rows) of two dimensions.
Result sum(const Tensor& x, bool columns) {
  ReduceArgs args{.shape = x.shape(), .x = {x.data_ptr(), x.dtype(), x.strides()}, .y_dtype = x.dtype()};
  args.reduced[columns ? 0 : 1] = true;
  Result result{.y = poisoned({x.shape()[columns ? 1 : 0]}, x.dtype()).to(kCuda)};
  args.y = result.y.data_ptr();
  const Tensor workspace = empty({cuda::reduce_workspace(args)}, {DType::f32, kCuda});
  result.workspace_bytes = workspace.nbytes();
  synchronize(kCuda);
  simgpu::clear_launches();
  cuda::reduce(args, workspace.data_ptr());
  synchronize(kCuda);
  for (const simgpu::LaunchRecord& launch : simgpu::launches()) result.counters += launch.counters;
  return result;
}

std::vector<double> expected_sum(const Tensor& x, bool columns) {
  const std::vector<double> values = x.to_vector<double>();
  const auto rows = static_cast<std::size_t>(x.shape()[0]), cols = static_cast<std::size_t>(x.shape()[1]);
  std::vector<double> sums(columns ? cols : rows);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < cols; ++c) sums[columns ? c : r] += values[r * cols + c];
  }
  return sums;
}

TEST(ReduceCounters, ReadsEachElementOnceInFullSectors) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const bool columns : {false, true}) {
      for (const Shape& shape : {Shape{64, 128}, Shape{600, 512}, Shape{32, 8192}, Shape{2048, 64}}) {
        const Tensor x = integers(shape, {.dtype = dtype, .low = 0, .high = 2}).to(kCuda);
        const Result result = sum(x, columns);
        SCOPED_TRACE(to_string(shape) + (columns ? " columns" : " rows"));
        const auto loads = static_cast<std::uint64_t>(x.nbytes() + result.workspace_bytes);
        const auto stores = static_cast<std::uint64_t>(result.y.nbytes() + result.workspace_bytes);
        EXPECT_EQ(result.counters.global_load_bytes, loads);
        EXPECT_EQ(result.counters.global_load_sectors * 32, loads);
        EXPECT_EQ(result.counters.global_store_bytes, stores);
        EXPECT_EQ(result.counters.shared_wavefronts, result.counters.shared_ideal_wavefronts);
        if (dtype == DType::f32) {
          EXPECT_TRUE(near(result.y, expected_sum(x, columns)));
        }
      }
    }
  }
}

TEST(ReduceCounters, VectorsAreOf16BytesAlongRows) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = integers({64, 1024}, {.dtype = dtype, .low = 0, .high = 2}).to(kCuda);
    EXPECT_EQ(sum(x, false).counters.global_load_requests, static_cast<std::uint64_t>(x.nbytes() / 512));
  }
}

TEST(ReduceCounters, SameBitsInEveryOrderOfBlocksAndWarps) {
  for (const Shape& shape : {Shape{600, 512}, Shape{2, 30000}, Shape{3000, 5}}) {
    const Tensor x = uniform(shape).to(kCuda);
    for (const bool columns : {false, true}) {
      const Tensor first = sum(x, columns).y;
      for (const unsigned seed : {1u, 2u}) {
        simgpu::settings().order_seed = seed;
        EXPECT_TRUE(equal_bits(sum(x, columns).y, first)) << to_string(shape) << " " << seed;
      }
      simgpu::settings().order_seed = 0;
    }
  }
}

TEST(ReduceCounters, WhatDoesNotFitVectorsIsRight) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Shape& shape : {Shape{1, 1}, Shape{3, 65}, Shape{65, 3}, Shape{7, 5000}, Shape{5000, 7}}) {
      for (const Layout layout : kLayouts) {
        for (const bool columns : {false, true}) {
          // Sums of up to 200 are exact in bf16.
          const Tensor ones = integers(shape, {.dtype = dtype, .low = 0, .high = 2}).to(kCuda);
          if (dtype == DType::bf16 && shape[columns ? 0 : 1] > 200) continue;
          const Tensor x = in_layout(ones, layout);
          EXPECT_TRUE(near(sum(x, columns).y, expected_sum(x, columns)))
              << to_string(shape) << " " << name_of(layout) << (columns ? " columns" : " rows");
        }
      }
    }
  }
}

// The workspace is written by the blocks that share a result and read by those that join what they found.
TEST(ExtremumCounters, ReadsEachElementOnceInFullSectors) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [outer, length, inner] :
         {std::array<std::int64_t, 3>{64, 512, 1}, {1, 8192, 32}, {4, 64, 128}}) {
      const Tensor x = uniform({outer, length, inner}, {.dtype = dtype}).to(kCuda);
      const Tensor values = empty({outer, inner}, {dtype, kCuda}),
                   indices = empty({outer, inner}, {DType::i64, kCuda});
      const ExtremumArgs args{.dtype = dtype,
                              .x = x.data_ptr(),
                              .values = values.data_ptr(),
                              .indices = indices.data<std::int64_t>(),
                              .outer = outer,
                              .length = length,
                              .inner = inner};
      const Tensor workspace = empty({cuda::extremum_workspace(args)}, {DType::u8, kCuda});
      synchronize(kCuda);
      simgpu::clear_launches();
      cuda::extremum(args, workspace.data_ptr());
      synchronize(kCuda);
      simgpu::Counters counters{};
      for (const simgpu::LaunchRecord& launch : simgpu::launches()) counters += launch.counters;
      SCOPED_TRACE(to_string(x.shape()));
      const auto loads = static_cast<std::uint64_t>(x.nbytes() + workspace.nbytes());
      EXPECT_EQ(counters.global_load_sectors * 32,
                loads);  // of the workspace's i64 only the lower halves matter
      EXPECT_EQ(counters.global_store_bytes,
                static_cast<std::uint64_t>(values.nbytes() + indices.nbytes() + workspace.nbytes()));
    }
  }
}

}  // namespace
}  // namespace ergon::kernels
