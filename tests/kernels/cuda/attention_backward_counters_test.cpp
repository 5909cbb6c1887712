// What attention's backward on tensor cores does, counted by the simulated GPU.

#include <gtest/gtest.h>

#include "core/stream.h"
#include "ops/attention.h"
#include "simgpu/simgpu.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

struct Results {
  std::vector<Tensor> gradients;  // of q, k and v
  simgpu::LaunchRecord launch;    // of the kernel that multiplies
  simgpu::Counters all;           // of all kernels
};
Results run(std::int64_t seqlen, std::int64_t num_heads, std::int64_t head_dim) {
  std::vector<Tensor> in;  // q, k, v, dout
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    const std::int64_t heads = seed == 1 || seed == 4 ? num_heads : 1;
    in.push_back(test::uniform({1, seqlen, heads, head_dim}, {.dtype = DType::f16, .seed = seed})
                     .to(Device::cuda())
                     .set_requires_grad(seed < 4));
  }
  const Tensor o = ops::scaled_dot_product_attention(in[0], in[1], in[2]);
  synchronize(Device::cuda());
  simgpu::clear_launches();
  o.backward(in[3]);
  synchronize(Device::cuda());
  Results results{.gradients = {in[0].grad(), in[1].grad(), in[2].grad()}, .launch = {}, .all = {}};
  int kernels = 0;
  for (const simgpu::LaunchRecord& launch : simgpu::launches()) {
    results.all += launch.counters;
    if (launch.kernel.find("attention_backward_mma_kernel") == std::string::npos) continue;
    results.launch = launch;
    ++kernels;
  }
  EXPECT_EQ(kernels, 1);
  return results;
}

// The length is a multiple of every tile: products take as many 16x8x16 pieces as the contract has flops,
// five of them, of which two warps compute two both at head_dim 256.
TEST(AttentionBackwardCounters, ProductsAreTheContractsAndBanksDoNotConflict) {
  constexpr std::int64_t kSeqlen = 256;
  for (const std::int64_t head_dim : {32, 64, 128, 256}) {
    SCOPED_TRACE(fmt::format("head_dim {}", head_dim));
    const simgpu::Counters counters = run(kSeqlen, 1, head_dim).launch.counters;
    const std::int64_t product = kSeqlen * kSeqlen * head_dim / (16 * 8 * 16);
    EXPECT_EQ(counters.mma_count, static_cast<std::uint64_t>((head_dim == 256 ? 7 : 5) * product));
    EXPECT_EQ(counters.shared_wavefronts, counters.shared_ideal_wavefronts);
  }
}

// The contract's formula but for the sums' zeroes, which no kernel writes; two query heads share keys.
TEST(AttentionBackwardCounters, BytesAreTheContractsInFullSectors) {
  constexpr std::int64_t kSeqlen = 256, kHeads = 2;
  for (const std::int64_t head_dim : {32, 64, 128, 256}) {
    SCOPED_TRACE(fmt::format("head_dim {}", head_dim));
    const simgpu::Counters counters = run(kSeqlen, kHeads, head_dim).all;
    const std::int64_t tiles = kSeqlen / (head_dim == 256 || head_dim == 32 ? 64 : 128), splits = tiles;
    const std::int64_t bytes =
        kSeqlen * 8 * head_dim
        + kHeads * kSeqlen
              * (6 * head_dim + 12 + 4 * splits * head_dim + tiles * (4 * head_dim + 8 + 8 * head_dim));
    // Atomic additions count as stores; they read too.
    EXPECT_EQ(counters.global_load_bytes + counters.global_store_bytes + 4 * counters.atomics,
              static_cast<std::uint64_t>(bytes));
    EXPECT_EQ(counters.global_load_sectors * 32, counters.global_load_bytes);
    EXPECT_EQ(counters.global_store_sectors * 32, counters.global_store_bytes);
  }
}

// Five tiles of keys, each of another block, add to each row of dq.
TEST(AttentionBackwardCounters, BitsDoNotDependOnTheOrderOfBlocksAndWarps) {
  const Results first = run(520, 2, 64);
  for (const std::uint64_t seed : {1u, 2u}) {
    simgpu::settings().order_seed = seed;
    const Results again = run(520, 2, 64);
    simgpu::settings().order_seed = 0;
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_TRUE(equal_bits(first.gradients[i], again.gradients[i]))
          << "gradient " << i << ", seed " << seed;
  }
}

}  // namespace
}  // namespace ergon
