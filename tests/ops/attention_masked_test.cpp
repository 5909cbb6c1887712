// What no query sees does not matter, be it NaN or infinite.

#include <limits>

#include <gtest/gtest.h>

#include "ops/attention.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(),
                 kInfinity = std::numeric_limits<double>::infinity();

struct Rows {
  std::int64_t begin, end;
};

// `t` (1, seqlen, heads, head_dim) with `value` in some rows.
Tensor planted(const Tensor& t, Rows rows, double value) {
  const Tensor result = t.clone();
  result.slice(1, rows.begin, rows.end).fill_(value);
  return result;
}

// o, softmax_lse, dq, dk, dv
std::vector<Tensor> run(const std::vector<Tensor>& qkv, const Tensor& dout, ops::AttentionOptions options) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : qkv) leaves.push_back(t.detach().set_requires_grad(true));
  Tensor lse;
  options.softmax_lse = &lse;
  const Tensor o = ops::scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], options);
  o.backward(dout);
  return {o.detach(), lse, leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
}

void expect_equal_bits(const std::vector<Tensor>& got, const std::vector<Tensor>& expected) {
  const char* const names[] = {"o", "softmax_lse", "dq", "dk", "dv"};
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(equal_bits(got[i], expected[i])) << names[i];
}

struct Case {
  DType dtype;
  std::int64_t head_dim;
  double softcap = 0;  // another kernel on CUDA
};
const Case kCases[] = {{DType::f32, 64}, {DType::bf16, 64},   {DType::bf16, 64, 2},
                       {DType::f16, 80}, {DType::f16, 80, 2}, {DType::bf16, 136}};

std::vector<Tensor> operands(const Case& c, std::int64_t seqlen_q, std::int64_t seqlen_k) {  // q, k, v, dout
  std::vector<Tensor> result;
  for (const auto& [seqlen, heads] :
       {std::pair(seqlen_q, 2), std::pair(seqlen_k, 1), std::pair(seqlen_k, 1), std::pair(seqlen_q, 2)}) {
    const std::uint64_t seed = result.size() + 1;
    result.push_back(test::uniform({1, seqlen, heads, c.head_dim}, {.dtype = c.dtype, .seed = seed}));
  }
  return result;
}

TEST(AttentionMasked, KeysOutOfEveryWindow) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(fmt::format("{} head_dim {} softcap {}", name_of(c.dtype), c.head_dim, c.softcap));
    const std::vector<Tensor> in = operands(c, 40, 150);
    const ops::AttentionOptions options{.window_left = 7, .window_right = 3, .softcap = c.softcap};
    const Rows unseen{0, 150 - 40 - 7};
    const std::vector<Tensor> expected = run({in[0], in[1], in[2]}, in[3], options);
    for (const double value : {kNaN, kInfinity}) {
      expect_equal_bits(
          run({in[0], planted(in[1], unseen, value), planted(in[2], unseen, value)}, in[3], options),
          expected);
    }
  }
}

TEST(AttentionMasked, QueriesWithoutKeys) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(fmt::format("{} head_dim {} softcap {}", name_of(c.dtype), c.head_dim, c.softcap));
    const std::vector<Tensor> in = operands(c, 150, 40);
    const ops::AttentionOptions options{.causal = true, .softcap = c.softcap};
    const Rows blind{0, 150 - 40};
    const std::vector<Tensor> expected = run({in[0], in[1], in[2]}, in[3], options);
    for (const double value : {kNaN, kInfinity}) {
      expect_equal_bits(
          run({planted(in[0], blind, value), in[1], in[2]}, planted(in[3], blind, value), options), expected);
    }
  }
}

// What is seen shows: a NaN in q in its query, one in k in the queries that see the key, and in no others.
TEST(AttentionMasked, ANaNThatIsSeenShows) {
  constexpr std::int64_t kSeqlen = 70, kRow = 37;
  for (const Case& c : kCases) {
    SCOPED_TRACE(fmt::format("{} head_dim {} softcap {}", name_of(c.dtype), c.head_dim, c.softcap));
    const std::vector<Tensor> in = operands(c, kSeqlen, kSeqlen);
    const ops::AttentionOptions options{.causal = true, .softcap = c.softcap};
    const auto attend = [&](const Tensor& q, const Tensor& k) {
      return run({q, k, in[2]}, in[3], options);  // o and softmax_lse, and gradients
    };
    const auto is_nan = [](const Tensor& t, std::int64_t begin, std::int64_t end) {
      const Tensor rows = t.slice(1, begin, end);
      return test::near(rows, std::vector<double>(static_cast<std::size_t>(rows.numel()), kNaN));
    };
    const std::vector<Tensor> expected = attend(in[0], in[1]),
                              by_q = attend(planted(in[0], {kRow, kRow + 1}, kNaN), in[1]),
                              by_k = attend(in[0], planted(in[1], {kRow, kRow + 1}, kNaN));
    const auto expect_same_o = [&](const std::vector<Tensor>& got, std::int64_t begin, std::int64_t end) {
      EXPECT_TRUE(equal_bits(got[0].slice(1, begin, end), expected[0].slice(1, begin, end)));
    };
    for (const std::size_t result : {0u, 2u}) EXPECT_TRUE(is_nan(by_q[result], kRow, kRow + 1)) << result;
    expect_same_o(by_q, 0, kRow);
    expect_same_o(by_q, kRow + 1, kSeqlen);
    for (const std::size_t result : {0u, 2u}) EXPECT_TRUE(is_nan(by_k[result], kRow, kSeqlen)) << result;
    expect_same_o(by_k, 0, kRow);
  }
}

// An item of a packed batch between two others that are NaN.
TEST(AttentionMasked, OtherItems) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(fmt::format("{} head_dim {} softcap {}", name_of(c.dtype), c.head_dim, c.softcap));
    const std::vector<Tensor> in = operands(c, 30 + 37 + 20, 30 + 37 + 20);
    const Tensor cu_seqlens =
        from_vector(std::vector<std::int32_t>{0, 30, 67, 87}, {4}, {DType::i32, test::device()});
    const ops::AttentionOptions options{.causal = true, .softcap = c.softcap};
    const auto middle = [&](double value) {
      std::vector<Tensor> leaves;
      for (const Tensor& t : in)
        leaves.push_back(
            planted(planted(t, {0, 30}, value), {67, 87}, value)[0].detach().set_requires_grad(true));
      const Tensor o = ops::scaled_dot_product_attention_varlen(leaves[0], leaves[1], leaves[2], cu_seqlens,
                                                                cu_seqlens, 37, 37, options);
      o.backward(leaves[3].detach());
      std::vector<Tensor> results;
      for (const Tensor& t : {o.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()})
        results.push_back(t.slice(0, 30, 67));
      return results;
    };
    const std::vector<Tensor> expected = middle(0), got = middle(kNaN);
    for (std::size_t i = 0; i < got.size(); ++i)
      EXPECT_TRUE(equal_bits(got[i], expected[i])) << "result " << i;
  }
}

}  // namespace
}  // namespace ergon
