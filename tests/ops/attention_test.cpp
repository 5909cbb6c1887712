#include "ops/attention.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/support/reference.h"

namespace ergon {
namespace {

using test::near_each;

struct Sizes {
  std::int64_t batch, seqlen_q, seqlen_k, num_heads, num_heads_kv, head_dim;
};

// softmax(scale q k^T) v by loops in fp64; `magnitude` gets sum_j p_j |v_j| for the error bound.
std::vector<double> reference(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                              std::vector<double>* magnitude) {
  const std::int64_t B = q.size(0), M = q.size(1), H = q.size(2), D = q.size(3), N = k.size(1), G = k.size(2);
  const std::vector<double> qs = q.to_vector<double>(), ks = k.to_vector<double>(),
                            vs = v.to_vector<double>();
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  std::vector<double> out(qs.size(), 0);
  magnitude->assign(qs.size(), 0);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t i = 0; i < M; ++i) {
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t g = h / (H / G),
                           keys = causal ? std::min(N, std::max<std::int64_t>(i + 1 + N - M, 0)) : N;
        std::vector<double> p(at(keys));
        double max = -INFINITY, sum = 0;
        for (std::int64_t j = 0; j < keys; ++j) {
          for (std::int64_t d = 0; d < D; ++d)
            p[at(j)] += qs[at(((b * M + i) * H + h) * D + d)] * ks[at(((b * N + j) * G + g) * D + d)];
          p[at(j)] /= std::sqrt(static_cast<double>(D));
          max = std::max(max, p[at(j)]);
        }
        for (double& x : p) sum += x = std::exp(x - max);
        for (std::int64_t j = 0; j < keys; ++j) {
          for (std::int64_t d = 0; d < D; ++d) {
            const double term = p[at(j)] / sum * vs[at(((b * N + j) * G + g) * D + d)];
            out[at(((b * M + i) * H + h) * D + d)] += term;
            (*magnitude)[at(((b * M + i) * H + h) * D + d)] += std::abs(term);
          }
        }
      }
    }
  }
  return out;
}

TEST(Attention, MatchesTheReferenceForAllShapesAndDtypes) {
  const std::vector<Sizes> kSizes{{1, 1, 1, 1, 1, 8},    {2, 31, 31, 2, 2, 16}, {1, 64, 64, 4, 2, 32},
                                  {2, 65, 65, 3, 1, 40}, {1, 3, 130, 2, 2, 8},  {1, 129, 129, 1, 1, 64},
                                  {1, 70, 5, 2, 1, 8},   {1, 0, 4, 1, 1, 8}};
  for (const Sizes& s : kSizes) {
    for (const bool causal : {false, true}) {
      for (const DType dtype : test::kFloatingDTypes) {
        const Tensor q =
            test::uniform({s.batch, s.seqlen_q, s.num_heads, s.head_dim}, {.dtype = dtype, .seed = 1});
        const Tensor k =
            test::uniform({s.batch, s.seqlen_k, s.num_heads_kv, s.head_dim}, {.dtype = dtype, .seed = 2});
        const Tensor v =
            test::uniform({s.batch, s.seqlen_k, s.num_heads_kv, s.head_dim}, {.dtype = dtype, .seed = 3});
        std::vector<double> bound;
        const std::vector<double> expected = reference(q, k, v, causal, &bound);
        // A score has head_dim + 1 roundings of magnitude <= 4 sqrt(head_dim); its error shifts p by as much,
        // relatively, twice (p and the sum). Exponential, sum and the product with v add a few roundings and
        // seqlen_k more.
        const double acc = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
        const double score_error = acc * 4 * std::sqrt(double(s.head_dim)) * double(s.head_dim + 1);
        const double relative = 2 * score_error + acc * (2.0 * double(s.seqlen_k) + 16);
        for (std::size_t i = 0; i < bound.size(); ++i) {
          bound[i] = relative * bound[i] + test::unit_roundoff(dtype) * std::abs(expected[i]) * 1.01
                     + test::underflow_error(dtype);
        }
        const Tensor o = ops::scaled_dot_product_attention(q, k, v, {.causal = causal});
        ASSERT_TRUE(near_each(o, expected, bound))
            << "seqlens " << s.seqlen_q << " " << s.seqlen_k << " head_dim " << s.head_dim << " causal "
            << causal << " " << name_of(dtype);
      }
    }
  }
}

TEST(Attention, GradientsMatchDifferences) {
  for (const bool causal : {false, true}) {
    for (const auto& [q_shape, k_shape] :
         {std::pair(Shape{2, 5, 4, 3}, Shape{2, 5, 2, 3}), std::pair(Shape{1, 3, 1, 2}, Shape{1, 6, 1, 2}),
          std::pair(Shape{1, 66, 1, 2}, Shape{1, 66, 1, 2})}) {
      Tensor q = test::uniform(q_shape, {.dtype = DType::f64, .seed = 1}),
             k = test::uniform(k_shape, {.dtype = DType::f64, .seed = 2}),
             v = test::uniform(k_shape, {.dtype = DType::f64, .seed = 3});
      const auto attention = [&](std::span<const Tensor> in) {
        return ops::scaled_dot_product_attention(in[0], in[1], in[2], {.causal = causal});
      };
      EXPECT_TRUE(test::gradients_match(attention, {q, k, v}));
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

TEST(Attention, BackwardIsDeterministic) {
  std::vector<Tensor> first;
  for (int run = 0; run < 3; ++run) {
    std::vector<Tensor> in;
    for (std::uint64_t seed : {1, 2, 3})
      in.push_back(test::uniform({2, 100, 4, 16}, {.seed = seed}).set_requires_grad(true));
    ops::scaled_dot_product_attention(in[0], in[1], in[2], {.causal = true})
        .backward(test::uniform({2, 100, 4, 16}, {.seed = 4}));
    for (std::size_t i = 0; i < 3; ++i) {
      if (run == 0) first.push_back(in[i].grad());
      EXPECT_TRUE(equal_bits(first[i], in[i].grad())) << "input " << i;
    }
  }
}

TEST(Attention, ErrorsNameShapes) {
  const Tensor q = zeros({1, 4, 4, 8});
  EXPECT_EQ(test::error_of([&] {
              ops::scaled_dot_product_attention(q, zeros({1, 4, 3, 8}), zeros({1, 4, 3, 8}));
            }),
            "[scaled_dot_product_attention] q (1, 4, 4, 8) has 4 heads: expected a multiple of the 3 "
            "key/value heads of k (1, 4, 3, 8)");
  EXPECT_EQ(test::error_of([&] {
              ops::scaled_dot_product_attention(q, zeros({1, 4, 4, 4}), zeros({1, 4, 4, 4}));
            }),
            "[scaled_dot_product_attention] q (1, 4, 4, 8) and k (1, 4, 4, 4) must agree in head_dim");
  EXPECT_EQ(test::error_of([&] { ops::scaled_dot_product_attention(q, q.to(DType::bf16), q); }),
            "[scaled_dot_product_attention] q is f32, another operand bf16: expected one floating dtype");
}

}  // namespace
}  // namespace ergon
