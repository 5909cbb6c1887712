// What the tensor-core kernels do, counted by the simulated GPU: the main loop from the difference of two
// products that differ in K.

#include <gtest/gtest.h>

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/cuda/gemm/plan.h"
#include "simgpu/simgpu.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

using simgpu::Counters;

struct Kind {
  const char* name;
  DType dtype;
  bool allow_tf32;
};
constexpr Kind kKinds[] = {{"bf16", DType::bf16, false},
                           {"f16", DType::f16, false},
                           {"tf32", DType::f32, true},
                           {"split tf32", DType::f32, false}};

// Of the product of ones, (rows, depth) by (depth, cols), with contiguous operands.
Counters counters_of(const Kind& kind, int tile, bool a_depth, bool b_depth, std::int64_t M, std::int64_t N,
                     std::int64_t K) {
  const TensorOptions options{.dtype = kind.dtype, .device = Device::cuda()};
  const Tensor a = ones({M * K}, options), b = ones({K * N}, options), c = empty({M * N}, options);
  GemmParams params{.M = M, .N = N, .K = K, .allow_tf32 = kind.allow_tf32};
  params.a = {a.data_ptr(), kind.dtype, a_depth ? K : 1, a_depth ? 1 : M};
  params.b = {b.data_ptr(), kind.dtype, b_depth ? 1 : N, b_depth ? K : 1};
  params.c = {c.data_ptr(), kind.dtype, N, 1};
  const Problem problem = problem_of(params);
  EXPECT_EQ(problem.a_depth, a_depth);
  EXPECT_EQ(problem.b_depth, b_depth);
  simgpu::clear_launches();
  run(params, problem, {problem.arithmetic, tile, 1});
  synchronize(Device::cuda());
  EXPECT_EQ(simgpu::launches().size(), 1u);
  return simgpu::launches().back().counters;
}

template <class F>
void for_each_kernel(F&& f) {
  for (const Kind& kind : kKinds) {
    for (int tile = 0; tile < kTileCount; ++tile) {
      for (const bool a_depth : {true, false}) {
        for (const bool b_depth : {true, false}) {
          const Arithmetic arithmetic = kind.dtype == DType::bf16  ? Arithmetic::bf16
                                        : kind.dtype == DType::f16 ? Arithmetic::f16
                                        : kind.allow_tf32          ? Arithmetic::tf32
                                                                   : Arithmetic::split_tf32;
          if (kernel_of(arithmetic, tile, a_depth, b_depth) == nullptr) continue;
          SCOPED_TRACE(std::string(kind.name) + " " + kTiles[tile].name + (a_depth ? " N" : " T")
                       + (b_depth ? "T" : "N"));
          f(kind, tile, a_depth, b_depth);
        }
      }
    }
  }
}

TEST(GemmCounters, MainLoop) {
  for_each_kernel([](const Kind& kind, int tile_index, bool a_depth, bool b_depth) {
    const Tile& tile = kTiles[tile_index];
    const std::int64_t step = tile.step(static_cast<int>(size_of(kind.dtype)));
    constexpr std::uint64_t kSteps = 2;
    const Counters fewer = counters_of(kind, tile_index, a_depth, b_depth, tile.rows, tile.cols, 6 * step);
    const Counters more =
        counters_of(kind, tile_index, a_depth, b_depth, tile.rows, tile.cols, (6 + kSteps) * step);
    const auto difference = [&](auto member) { return more.*member - fewer.*member; };
    EXPECT_EQ(difference(&Counters::shared_wavefronts), difference(&Counters::shared_ideal_wavefronts));
    const std::uint64_t bytes =
        kSteps * static_cast<std::uint64_t>((tile.rows + tile.cols) * tile.step_bytes);
    EXPECT_EQ(difference(&Counters::global_load_bytes), bytes);
    EXPECT_EQ(difference(&Counters::global_load_sectors) * 32, bytes);
    EXPECT_EQ(difference(&Counters::barriers), kSteps);
    const double share =
        static_cast<double>(difference(&Counters::mma_count))
        / static_cast<double>(more.warp_instructions.total() - fewer.warp_instructions.total());
    if (tile.warp_rows * tile.warp_cols < 64 * 64) return;
    // Of PTX, where an address is an instruction of its own; gemm_machine_code_test.cpp counts machine code.
    EXPECT_GE(share, 0.5);
  });
}

TEST(GemmCounters, BytesOfWholeProducts) {
  for_each_kernel([](const Kind& kind, int tile_index, bool a_depth, bool b_depth) {
    const Tile& tile = kTiles[tile_index];
    if (a_depth != b_depth || kind.dtype == DType::f16) return;
    const std::int64_t M = 2 * tile.rows, N = tile.cols, K = 128, size = size_of(kind.dtype);
    const Counters counters = counters_of(kind, tile_index, a_depth, b_depth, M, N, K);
    const std::int64_t bytes = 2 * (tile.rows + tile.cols) * K * size;
    EXPECT_NEAR(static_cast<double>(counters.global_load_bytes), static_cast<double>(bytes), 0.05 * bytes);
    EXPECT_EQ(counters.global_load_sectors * 32, counters.global_load_bytes);
    EXPECT_EQ(counters.global_store_bytes, static_cast<std::uint64_t>(M * N * size));
    EXPECT_EQ(counters.global_store_sectors * 32, counters.global_store_bytes);
  });
}

}  // namespace
}  // namespace ergon::kernels::cuda::gemm_detail
