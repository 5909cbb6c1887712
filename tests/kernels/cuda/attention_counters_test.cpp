// What attention's forward on tensor cores does, counted by the simulated GPU: products, bytes in full
// sectors, shared memory without bank conflicts.

#include <gtest/gtest.h>

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/attention.h"
#include "simgpu/simgpu.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using simgpu::InstructionClass;

const Device kCuda = Device::cuda();
constexpr std::int64_t kTileRows = 128, kWarpRows = 32;

// What docs/attention.md says of a head size, without features.
struct Tiles {
  std::int64_t head_dim, keys;
};
constexpr Tiles kTiles[] = {{32, 64}, {64, 64}, {128, 48}};

// A multiple of every tile, so that nothing is cut off; the first one at which causal skips 45 % of all mma.
constexpr std::int64_t kSeqlen = 768;

struct Problem {
  std::int64_t head_dim, seqlen, num_heads = 1, num_heads_kv = 1;
  bool causal = false;
};

struct Results {
  Tensor o, lse;
  simgpu::LaunchRecord launch;
};
Results run(const Problem& problem) {
  const auto operand = [&](std::int64_t heads, std::uint64_t seed) {
    return test::uniform({1, problem.seqlen, heads, problem.head_dim}, {.dtype = DType::bf16, .seed = seed})
        .to(kCuda);
  };
  const auto rows = [](const Tensor& t) {
    return AttentionOperand{t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
  };
  const Tensor q = operand(problem.num_heads, 1), k = operand(problem.num_heads_kv, 2),
               v = operand(problem.num_heads_kv, 3),
               lse = test::poisoned({1, problem.num_heads, problem.seqlen}, DType::f32).to(kCuda);
  const Tensor o = test::poisoned(q.shape(), DType::bf16).to(kCuda);
  const AttentionParams params{.dtype = DType::bf16,
                               .batch = 1,
                               .seqlen_q = problem.seqlen,
                               .seqlen_k = problem.seqlen,
                               .num_heads = problem.num_heads,
                               .num_heads_kv = problem.num_heads_kv,
                               .head_dim = problem.head_dim,
                               .softmax_scale = 0.125,
                               .causal = problem.causal,
                               .q = rows(q),
                               .k = rows(k),
                               .v = rows(v),
                               .o = rows(o),
                               .softmax_lse = lse.data_ptr()};
  EXPECT_EQ(cuda::attention_forward_workspace(params), 0);
  synchronize(kCuda);
  simgpu::clear_launches();
  cuda::attention_forward(params);
  synchronize(kCuda);
  EXPECT_EQ(simgpu::launches().size(), 1u);
  return {o, lse, simgpu::launches().back()};
}

// The tiles of keys that rows `first` to `first + rows - 1` of the queries need, as many as there are keys.
std::int64_t tiles_of_keys(const Problem& problem, const Tiles& tiles, std::int64_t first,
                           std::int64_t rows) {
  const std::int64_t keys = problem.causal ? first + rows : problem.seqlen;
  return (keys + tiles.keys - 1) / tiles.keys;
}

// A warp multiplies the tiles of keys that any of its queries sees: with queries, and then with values.
std::uint64_t expected_mma(const Problem& problem, const Tiles& tiles) {
  const std::int64_t mma_of_tile = 2 * (kWarpRows / 16) * (tiles.keys / 8) * (tiles.head_dim / 16);
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < problem.seqlen; row += kWarpRows)
    count += tiles_of_keys(problem, tiles, row, kWarpRows) * mma_of_tile;
  return static_cast<std::uint64_t>(count * problem.num_heads);
}

// The contract's formula: q once, and the k and v that it sees once for every tile of queries and query head.
std::uint64_t expected_loads(const Problem& problem) {
  std::int64_t rows = problem.seqlen;
  for (std::int64_t row = 0; row < problem.seqlen; row += kTileRows)
    rows += 2 * (problem.causal ? row + kTileRows : problem.seqlen);
  return static_cast<std::uint64_t>(rows * problem.num_heads * problem.head_dim * 2);
}

template <class F>
void for_each_problem(F&& f) {
  for (const Tiles& tiles : kTiles) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE(fmt::format("head_dim {}{}", tiles.head_dim, causal ? " causal" : ""));
      // The query heads of a group read the same keys, each for itself.
      f(Problem{.head_dim = tiles.head_dim,
                .seqlen = kSeqlen / 2,
                .num_heads = 2,
                .num_heads_kv = 1,
                .causal = causal},
        tiles);
    }
  }
}

TEST(AttentionCounters, CausalSkipsWhatNoQueryOfAWarpSees) {
  for (const Tiles& tiles : kTiles) {
    SCOPED_TRACE(fmt::format("head_dim {}", tiles.head_dim));
    const auto mma = [&](std::int64_t seqlen, bool causal) {
      const Problem problem{.head_dim = tiles.head_dim, .seqlen = seqlen, .causal = causal};
      const std::uint64_t count = run(problem).launch.counters.mma_count;
      EXPECT_EQ(count, expected_mma(problem, tiles));
      return static_cast<double>(count);
    };
    EXPECT_LE(mma(kSeqlen, true), 0.55 * mma(kSeqlen, false));
    mma(kSeqlen / 2 - 31, true);  // the last tiles are cut off
  }
}

TEST(AttentionCounters, BytesAreTheContractsInFullSectors) {
  for_each_problem([](const Problem& problem, const Tiles&) {
    const Results results = run(problem);
    const simgpu::Counters& counters = results.launch.counters;
    EXPECT_EQ(counters.global_load_bytes, expected_loads(problem));
    EXPECT_EQ(counters.global_load_sectors * 32, counters.global_load_bytes);
    EXPECT_EQ(counters.global_store_bytes,
              static_cast<std::uint64_t>(results.o.nbytes() + results.lse.nbytes()));
    EXPECT_EQ(counters.global_store_sectors * 32, counters.global_store_bytes);
  });
}

TEST(AttentionCounters, NoBankConflicts) {
  for_each_problem([](const Problem& problem, const Tiles&) {
    const simgpu::Counters counters = run(problem).launch.counters;
    EXPECT_GT(counters.shared_ideal_wavefronts, 0u);
    EXPECT_EQ(counters.shared_wavefronts, counters.shared_ideal_wavefronts);
  });
}

// An iteration of a warp: 32 queries with a tile of keys and of values that all of them see. Shares are of
// PTX (docs/attention.md has the machine code's) and only keep what was reached.
TEST(AttentionCounters, MainLoop) {
  for (const Tiles& tiles : kTiles) {
    SCOPED_TRACE(fmt::format("head_dim {}", tiles.head_dim));
    const Results results = run({.head_dim = tiles.head_dim, .seqlen = kSeqlen / 2});
    const simgpu::Region& loop = simgpu::main_loop(results.launch);
    const simgpu::Instructions& instructions = loop.warp_instructions;
    const std::uint64_t iterations = loop.iterations;
    const auto fragments = static_cast<std::uint64_t>(kWarpRows / 16 * tiles.head_dim / 16),
               squares = static_cast<std::uint64_t>(tiles.keys / 16 * tiles.head_dim / 16),
               scores = static_cast<std::uint64_t>(kWarpRows * tiles.keys / 32);
    // Queries, keys and values once each, for all products of the warp.
    EXPECT_EQ(instructions[InstructionClass::kMatrixLoad], iterations * (fragments + 2 * squares));
    // One exponential for each score of a lane, and one for each of its four rows to correct the sums so far.
    EXPECT_EQ(instructions[InstructionClass::kSpecial], iterations * (scores + 4));
    EXPECT_EQ(instructions[InstructionClass::kBarrier], iterations * 2);
    EXPECT_GE(static_cast<double>(loop.work.mma_count) / static_cast<double>(instructions.total()),
              tiles.head_dim == 32   ? 0.08
              : tiles.head_dim == 64 ? 0.15
                                     : 0.21);
  }
}

TEST(AttentionCounters, BitsDoNotDependOnTheOrderOfBlocksAndWarps) {
  for_each_problem([](const Problem& problem, const Tiles&) {
    const Results first = run(problem);
    for (const std::uint64_t seed : {1u, 12345u}) {
      simgpu::settings().order_seed = seed;
      const Results again = run(problem);
      simgpu::settings().order_seed = 0;
      EXPECT_TRUE(equal_bits(first.o, again.o)) << "o, seed " << seed;
      EXPECT_TRUE(equal_bits(first.lse, again.lse)) << "softmax_lse, seed " << seed;
    }
  });
}

}  // namespace
}  // namespace ergon::kernels
