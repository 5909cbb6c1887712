#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "ops/reduce.h"
#include "tests/support/attention_reference.h"
#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon {
namespace {

using test::AttentionProblem;
using test::AttentionValues;
using Lengths = std::vector<std::int64_t>;

enum class BiasShape { none, full, per_key };  // (B, H, M, N), (N)

struct Case {
  Lengths seqlens_q, seqlens_k;  // of each item; several different ones are packed
  std::int64_t num_heads, num_heads_kv, head_dim;
  DType dtype;
  ops::AttentionOptions options = {};
  BiasShape bias = BiasShape::none;
  bool alibi = false;
  double bias_mean = 0;
};

// Every feature, head_dim, dtype and length around the edges of tiles, not every combination of them.
const Case kCases[] = {
    {{1}, {1}, 1, 1, 8, DType::f32},
    {{31, 31}, {31, 31}, 2, 2, 32, DType::bf16, {.causal = true}},
    {{63}, {63}, 4, 2, 64, DType::f16, {.causal = true, .dropout_p = 0.2}},
    {{64}, {64}, 2, 1, 80, DType::f32, {.causal = true, .window_left = 16}},
    {{65}, {127}, 3, 1, 128, DType::bf16, {.window_left = 20, .window_right = 5}},
    {{127}, {65}, 2, 2, 32, DType::f32, {.causal = true, .softcap = 1.5}},  // rows without keys
    {{128}, {128}, 1, 1, 256, DType::f32, {}, BiasShape::per_key},
    {{129, 129}, {129, 129}, 2, 1, 64, DType::bf16, {.causal = true, .dropout_p = 0.1}, BiasShape::full},
    {{1000}, {1000}, 2, 1, 64, DType::f32, {.causal = true}},
    {{1, 1}, {1000, 1000}, 4, 2, 64, DType::bf16},
    {{2}, {1300}, 4, 1, 64, DType::bf16, {.causal = true, .window_left = 700, .dropout_p = 0.1}},
    {{3}, {1000}, 4, 4, 32, DType::f16, {.causal = true}, BiasShape::none, true},
    {{1}, {100}, 4, 1, 24, DType::f16, {.window_left = 70, .dropout_p = 0.2}},
    {{2},
     {150},
     2,
     2,
     40,
     DType::f64,
     {.causal = true, .window_left = 30, .softcap = 2, .dropout_p = 0.3},
     BiasShape::full,
     true},
    {{1000}, {129}, 1, 1, 8, DType::f32, {.window_left = 30}},  // rows without keys at the beginning
    {{65},
     {65},
     4,
     2,
     256,
     DType::bf16,
     {.causal = true, .softcap = 2, .dropout_p = 0.1},
     BiasShape::full,
     true},
    {{33},
     {70},
     2,
     2,
     40,
     DType::f64,
     {.causal = true, .window_left = 9, .dropout_p = 0.5},
     BiasShape::full,
     true},
    {{5}, {64}, 2, 2, 64, DType::f32, {.softmax_scale = 0.5, .window_left = 3, .window_right = 3}},
    {{0}, {4}, 1, 1, 8, DType::f32},
    {{4}, {0}, 1, 1, 8, DType::f32},
    {{0, 31, 64, 1},
     {5, 31, 0, 130},
     2,
     2,
     32,
     DType::f32,
     {.causal = true, .dropout_p = 0.3},
     BiasShape::none,
     true},
    {{100, 129, 7},
     {100, 129, 7},
     4,
     2,
     64,
     DType::bf16,
     {.window_left = 40, .window_right = 3, .softcap = 3}},
    {{65, 1}, {64, 200}, 2, 1, 128, DType::f16, {.causal = true}},
};

// Rows whose scores all lie far below zero, where one unit of fp32 is large: by ALiBi, of queries that stand
// before all keys, and by a bias.
const Case kLargeScores[] = {
    {{1000}, {129}, 2, 1, 64, DType::f32, {}, BiasShape::none, true},
    {{40, 1000}, {150, 70}, 2, 2, 32, DType::f32, {.dropout_p = 0.2}, BiasShape::none, true},
    {{150}, {150}, 2, 1, 64, DType::f32, {.causal = true}, BiasShape::full, false, -300},
    {{40}, {70}, 1, 1, 128, DType::f32, {.window_left = 30, .softcap = 2}, BiasShape::per_key, true, -1000},
    {{3}, {1100}, 2, 2, 32, DType::f32, {}, BiasShape::per_key, false, -1000},  // parts of the keys
    {{40}, {150}, 1, 1, 64, DType::f32, {.softmax_scale = 0}, BiasShape::full, false, -1000},  // exact scores
};

// Head sizes that only the CPU takes.
const Case kOddHeads[] = {
    {{40}, {40}, 2, 1, 5, DType::f32, {.causal = true}},
    {{20}, {33}, 1, 1, 260, DType::bf16},
};

std::int64_t longest(const Lengths& lengths) { return *std::ranges::max_element(lengths); }

bool is_packed(const Case& c) {
  const auto differ = [](const Lengths& l) { return std::ranges::count(l, l[0]) != std::ssize(l); };
  return differ(c.seqlens_q) || differ(c.seqlens_k);
}

Tensor cu_seqlens(const Lengths& lengths) {
  std::vector<std::int32_t> sums{0};
  for (std::int64_t length : lengths) sums.push_back(sums.back() + static_cast<std::int32_t>(length));
  return from_vector(sums, {std::ssize(sums)}, {DType::i32, test::device()});
}

struct Operands {
  std::vector<Tensor> qkv;
  Tensor dout;
  ops::AttentionOptions options;  // without a generator
  AttentionProblem problem;
};

constexpr std::uint64_t kDropoutSeed = 99;

Operands operands(const Case& c) {
  const std::int64_t batch = std::ssize(c.seqlens_q), M = longest(c.seqlens_q), N = longest(c.seqlens_k);
  const auto random = [&](const Lengths& lengths, std::int64_t heads, std::uint64_t seed) {
    const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    return test::uniform(
        is_packed(c) ? Shape{total, heads, c.head_dim} : Shape{batch, lengths[0], heads, c.head_dim},
        {.dtype = c.dtype, .seed = seed});
  };
  Operands in{.qkv = {random(c.seqlens_q, c.num_heads, 1), random(c.seqlens_k, c.num_heads_kv, 2),
                      random(c.seqlens_k, c.num_heads_kv, 3)},
              .dout = random(c.seqlens_q, c.num_heads, 4),
              .options = c.options,
              .problem = {}};
  if (c.alibi) in.options.alibi_slopes = test::uniform({c.num_heads}, {.low = 0.01, .high = 0.5, .seed = 5});
  AttentionProblem& p = in.problem;
  p = {.q = in.qkv[0].to_vector<double>(),
       .dout = in.dout.to_vector<double>(),
       .k = in.qkv[1].to_vector<double>(),
       .v = in.qkv[2].to_vector<double>(),
       .num_heads = c.num_heads,
       .num_heads_kv = c.num_heads_kv,
       .head_dim = c.head_dim,
       .items = AttentionProblem::packed_items(c.seqlens_q, c.seqlens_k),
       .seqlen_q = M,
       .seqlen_k = N,
       .options = in.options,
       .bias = {},
       .dropout_stream = {kDropoutSeed, 0}};
  if (c.bias != BiasShape::none) {
    const Shape full{batch, c.num_heads, M, N};
    in.options.bias =
        test::uniform(c.bias == BiasShape::full ? full : Shape{N},
                      {.dtype = c.dtype, .low = c.bias_mean - 2, .high = c.bias_mean + 2, .seed = 6});
    p.bias = in.options.bias.expand(full).to_vector<double>();
  }
  return in;
}

// o, softmax_lse, dq, dk, dv
std::vector<Tensor> run(const Case& c, const Operands& in) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : in.qkv) leaves.push_back(t.detach().set_requires_grad(true));
  ops::AttentionOptions options = in.options;
  Generator generator(kDropoutSeed);
  Tensor lse;
  options.generator = &generator;
  options.softmax_lse = &lse;
  const Tensor o = is_packed(c) ? ops::scaled_dot_product_attention_varlen(
                       leaves[0], leaves[1], leaves[2], cu_seqlens(c.seqlens_q), cu_seqlens(c.seqlens_k),
                       longest(c.seqlens_q), longest(c.seqlens_k), options)
                                : ops::scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], options);
  o.backward(in.dout);
  return {o.detach(), lse, leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (double value : values) result = std::max(result, std::abs(value));
  return result;
}

// Is the largest error at most twice that of the composed computation? Both end in a rounding to the dtype,
// and a few in fp32 (exp, the sum, the quotient) that the composed one may escape by luck: one unit of the
// dtype and four of fp32, relative to the largest element. `by_o`: what such roundings of o do to sum(dout *
// o), which the composed computation does not need.
testing::AssertionResult as_exact_as_composed(const Tensor& got, const std::vector<double>& expected,
                                              const std::vector<double>& composed,
                                              const std::vector<double>& by_o = {}) {
  double composed_error = 0;
  for (std::size_t i = 0; i < expected.size(); ++i)
    composed_error = std::max(composed_error, std::abs(composed[i] - expected[i]));
  const double acc = got.dtype() == DType::f64 ? 0x1p-53 : 0x1p-24, unit = test::unit_roundoff(got.dtype());
  return test::near(got, expected,
                    {.atol = 2 * composed_error + (unit + 4 * acc) * (largest(expected) + largest(by_o))
                             + test::underflow_error(got.dtype())});
}

void expect_as_exact_as_composed(const Case& c) {
  SCOPED_TRACE(fmt::format("seqlens_q {} seqlens_k {} heads {} of {} head_dim {} {}", Shape(c.seqlens_q),
                           Shape(c.seqlens_k), c.num_heads, c.num_heads_kv, c.head_dim, name_of(c.dtype)));
  const Operands in = operands(c);
  const std::vector<Tensor> got = run(c, in);
  const AttentionValues expected = c.dtype == DType::f64 ? test::exact_attention(in.problem)
                                                         : test::composed_attention(in.problem, DType::f64);
  const AttentionValues composed = test::composed_attention(in.problem, c.dtype);
  EXPECT_TRUE(as_exact_as_composed(got[0], expected.o, composed.o)) << "o";
  EXPECT_TRUE(as_exact_as_composed(got[2], expected.dq, composed.dq, expected.dq_by_o)) << "dq";
  EXPECT_TRUE(as_exact_as_composed(got[3], expected.dk, composed.dk, expected.dk_by_o)) << "dk";
  EXPECT_TRUE(as_exact_as_composed(got[4], expected.dv, composed.dv)) << "dv";
  const Tensor lse = is_packed(c) ? got[1] : got[1].transpose(0, 1);
  EXPECT_TRUE(as_exact_as_composed(lse, expected.lse, composed.lse)) << "softmax_lse";
}

// f32 and f64 go through tiles of at most 32 rows on CUDA: what a simulation of it takes its time for there
// has nothing new after a few of them.
Case for_device(Case c) {
  constexpr std::int64_t kLongest = 200;
  if (test::device().is_cpu() || size_of(c.dtype) == 2) return c;
  for (Lengths* lengths : {&c.seqlens_q, &c.seqlens_k})
    for (std::int64_t& length : *lengths) length = std::min(length, kLongest);
  return c;
}

TEST(Attention, IsAsExactAsComposed) {
  for (const Case& c : kCases) expect_as_exact_as_composed(for_device(c));
  if (!test::device().is_cpu()) return;
  for (const Case& c : kOddHeads) expect_as_exact_as_composed(c);
}

TEST(Attention, IsAsExactAsComposedWhereScoresAreLarge) {
  for (const Case& c : kLargeScores) expect_as_exact_as_composed(for_device(c));
}

// In f64, where the kernels' own arithmetic leaves no doubt.
TEST(Attention, GradientsMatchDifferences) {
  const Case kSmall[] = {
      {{5, 5}, {5, 5}, 4, 2, 3, DType::f64, {.causal = true}},
      {{3}, {6}, 1, 1, 2, DType::f64},
      {{66}, {66}, 1, 1, 2, DType::f64, {.causal = true}},
      {{7},
       {9},
       2,
       1,
       4,
       DType::f64,
       {.window_left = 3, .softcap = 0.7, .dropout_p = 0.3},
       BiasShape::full,
       true},
      {{3, 0, 5}, {4, 2, 1}, 2, 1, 8, DType::f64, {.causal = true}},
  };
  for (const Case& c : kSmall) {
    const Operands in = operands(c);
    const auto attention = [&](std::span<const Tensor> qkv) {
      ops::AttentionOptions options = in.options;
      Generator generator(kDropoutSeed);
      options.generator = &generator;
      if (!is_packed(c)) return ops::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], options);
      return ops::scaled_dot_product_attention_varlen(qkv[0], qkv[1], qkv[2], cu_seqlens(c.seqlens_q),
                                                      cu_seqlens(c.seqlens_k), longest(c.seqlens_q),
                                                      longest(c.seqlens_k), options);
    };
    EXPECT_TRUE(test::gradients_match(attention, in.qkv));
  }
}

TEST(Attention, BitsDependNeitherOnTheRunNorOnTheThreads) {
  const Case kFewHeads[] = {
      {{300}, {300}, 1, 1, 32, DType::f32, {.causal = true}},
      {{100, 100}, {100, 100}, 3, 3, 16, DType::bf16, {.causal = true}},
      {{150, 20, 200}, {150, 20, 200}, 2, 1, 16, DType::f32, {.causal = true, .dropout_p = 0.1}},
      {{1}, {2000}, 3, 1, 16, DType::bf16},  // parts of the keys
  };
  for (const Case& c : kFewHeads) {
    const Operands in = operands(c);
    const std::vector<Tensor> first = run(c, in);
    for (const int threads : {1, 2, 3, 5}) {
      const std::vector<Tensor> again = test::with_threads(threads, [&] { return run(c, in); });
      for (std::size_t i = 0; i < first.size(); ++i)
        EXPECT_TRUE(equal_bits(first[i], again[i])) << threads << " threads, result " << i;
      if (!test::device().is_cpu()) break;  // has no such threads: a second run is enough
    }
  }
}

TEST(Attention, PackedProjectionIsReadWithoutCopies) {
  const Tensor qkv = test::uniform({2, 17, 3 * 4 * 8});
  const auto heads = [&](const Tensor& t, std::int64_t which) {
    return t.slice(2, which * 32, (which + 1) * 32).view({2, 17, 4, 8});
  };
  const Tensor strided =
      ops::scaled_dot_product_attention(heads(qkv, 0), heads(qkv, 1), heads(qkv, 2), {.causal = true});
  const Tensor dense = ops::scaled_dot_product_attention(heads(qkv, 0).clone(), heads(qkv, 1).clone(),
                                                         heads(qkv, 2).clone(), {.causal = true});
  EXPECT_TRUE(equal_bits(strided, dense));
}

// The gradients of the pieces of one projection are written side by side, so that they are its gradient.
TEST(Attention, PackedProjectionGetsItsGradientInOnePiece) {
  const Tensor qkv = test::uniform({2, 17, (4 + 2 + 2) * 8});
  Tensor packed = qkv.clone();
  packed.set_requires_grad(true);
  const std::vector<Tensor> pieces = split(packed, {32, 16, 16}, 2);
  std::vector<Tensor> heads, dense;
  for (const Tensor& piece : pieces) {
    const Shape shape{2, 17, piece.size(2) / 8, 8};
    heads.push_back(piece.view(shape));
    dense.push_back(piece.detach().clone().view(shape));
    dense.back().set_requires_grad(true);
  }
  const Tensor weights = test::uniform({2, 17, 4, 8});
  const auto backward = [&](const std::vector<Tensor>& t) {
    ops::sum(ops::scaled_dot_product_attention(t[0], t[1], t[2], {.causal = true}) * weights).backward();
  };
  backward(heads);
  backward(dense);
  const std::vector<Tensor> grads = split(packed.grad(), {32, 16, 16}, 2);
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_TRUE(equal_bits(grads[i], dense[i].grad().view(grads[i].shape()))) << i;
}

// A bias of -infinity masks: as if the keys were not there, for all of them too.
TEST(Attention, ABiasCanMask) {
  const Case c{{20}, {50}, 2, 2, 16, DType::f32, {}, BiasShape::full};
  Operands in = operands(c);
  std::vector<double> bias(2 * 20 * 50, 0);
  for (std::size_t row = 0; row < 40; ++row)
    for (std::size_t j = row % 20 == 7 ? 0 : 30; j < 50; ++j)
      bias[row * 50 + j] = -std::numeric_limits<double>::infinity();
  in.options.bias = from_vector(bias, {1, 2, 20, 50}, {DType::f32, test::device()});
  const std::vector<Tensor> got = run(c, in);

  Operands fewer = operands(c);
  fewer.options.bias = {};
  for (const std::size_t i : {1u, 2u}) fewer.qkv[i] = fewer.qkv[i].slice(1, 0, 30);
  const std::vector<Tensor> expected = run(c, fewer);
  // Another grouping of the same sums: 30 roundings of fp32 in each, of terms up to 2.
  const auto rows_but_the_seventh = [](const Tensor& t) {
    return cat({t.slice(1, 0, 7), t.slice(1, 8, 20)}, 1);
  };
  EXPECT_TRUE(
      test::near(rows_but_the_seventh(got[0]), rows_but_the_seventh(expected[0]), {.atol = 60 * 0x1p-24}));
  EXPECT_TRUE(test::near(got[0].slice(1, 7, 8), std::vector<double>(32, 0.0)));
  EXPECT_TRUE(test::near(got[2].slice(1, 7, 8), std::vector<double>(32, 0.0)));
  EXPECT_TRUE(test::near(got[3].slice(1, 30, 50), std::vector<double>(20 * 32, 0.0)));
  EXPECT_TRUE(test::near(got[1].select(1, 0).slice(1, 7, 8), std::vector<double>(1, -INFINITY)));
}

}  // namespace
}  // namespace ergon
