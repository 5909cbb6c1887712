// Attention against a cache of keys and values, and the errors of all three ops.

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/attention.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

Tensor indices(const std::vector<std::int32_t>& values, const Shape& shape) {
  return from_vector(values, shape, {DType::i32, test::device()});
}

// A cache with 37 keys, with as many as it can hold, and with 5; the rest is poison.
struct Cached {
  ops::AttentionCache cache;
  std::vector<std::int32_t> lengths;
  Tensor k, v;

  explicit Cached(DType dtype, std::int64_t capacity = 96)
      : lengths{37, static_cast<std::int32_t>(capacity), 5} {
    const Shape shape{3, capacity, 2, 32};
    k = test::uniform(shape, {.dtype = dtype, .seed = 2});
    v = test::uniform(shape, {.dtype = dtype, .seed = 3});
    cache = {test::poisoned(shape, dtype), test::poisoned(shape, dtype), indices(lengths, {3})};
    for (std::int64_t b = 0; b < 3; ++b) {
      const std::int64_t length = lengths[static_cast<std::size_t>(b)];
      cache.k[b].slice(0, 0, length).copy_(k[b].slice(0, 0, length));
      cache.v[b].slice(0, 0, length).copy_(v[b].slice(0, 0, length));
    }
  }
};

TEST(AttentionCache, IsAttentionToTheKeysItHolds) {
  for (const auto& [dtype, capacity] :
       {std::pair(DType::f32, 96), std::pair(DType::bf16, 96), std::pair(DType::bf16, 1100)}) {
    const Cached c(dtype, capacity);
    for (const std::int64_t seqlen_q : {1, 5}) {
      // The CPU splits the keys of few queries into parts. CUDA too, but rounds probabilities there.
      if (capacity > 96 && (seqlen_q > 1 || !test::device().is_cpu())) continue;
      for (const ops::AttentionOptions& options :
           {ops::AttentionOptions{.causal = true}, {.causal = true, .window_left = 20, .softcap = 1}}) {
        const Tensor q = test::uniform({3, seqlen_q, 4, 32}, {.dtype = dtype, .seed = 1});
        const Tensor o = ops::scaled_dot_product_attention_with_cache(q, c.cache, options);
        for (std::int64_t b = 0; b < 3; ++b) {
          const std::int64_t length = c.lengths[static_cast<std::size_t>(b)];
          const auto item = [&](const Tensor& t, std::int64_t rows) {
            return t.slice(0, b, b + 1).slice(1, 0, rows);
          };
          const Tensor expected = ops::scaled_dot_product_attention(item(q, seqlen_q), item(c.k, length),
                                                                    item(c.v, length), options);
          // Sums of terms below 2 in another order, and the rounding to the dtype.
          EXPECT_TRUE(test::near(
              item(o, seqlen_q), expected,
              {.rtol = 2 * test::unit_roundoff(dtype), .atol = 2 * static_cast<double>(capacity) * 0x1p-24}))
              << "item " << b;
        }
      }
    }
  }
}

void expect_same_bits_from_pages(DType dtype) {
  const Cached c(dtype);
  for (const std::int64_t page_size : {8, 24}) {
    const std::int64_t pages_each = 96 / page_size, pages = 3 * pages_each;
    ops::AttentionCache paged{test::poisoned({pages, page_size, 2, 32}, dtype),
                              test::poisoned({pages, page_size, 2, 32}, dtype), c.cache.seqlens_k};
    std::vector<std::int32_t> table(static_cast<std::size_t>(pages),
                                    -1);  // pages that hold no key: any number
    for (std::int64_t b = 0, page = 0; b < 3; ++b) {
      for (std::int64_t i = 0; i * page_size < c.lengths[static_cast<std::size_t>(b)]; ++i, ++page) {
        const std::int64_t shuffled = page * 5 % (pages - pages % 5 == pages ? pages - 1 : pages);
        table[static_cast<std::size_t>(b * pages_each + i)] = static_cast<std::int32_t>(shuffled);
        for (const auto& [target, source] : {std::pair(paged.k, c.cache.k), std::pair(paged.v, c.cache.v)})
          target[shuffled].copy_(source[b].slice(0, i * page_size, (i + 1) * page_size));
      }
    }
    paged.block_table = indices(table, {3, pages_each});
    const Tensor q = test::uniform({3, 3, 4, 32}, {.dtype = dtype});
    EXPECT_TRUE(equal_bits(ops::scaled_dot_product_attention_with_cache(q, paged, {.causal = true}),
                           ops::scaled_dot_product_attention_with_cache(q, c.cache, {.causal = true})))
        << "pages of " << page_size;
  }
}

TEST(AttentionCache, PagesGiveTheSameBits) {
  for (const DType dtype : {DType::f32, DType::bf16}) expect_same_bits_from_pages(dtype);
}

class AttentionErrors : public testing::Test {
 protected:
  Tensor some(const Shape& shape, DType dtype = DType::f32) { return zeros(shape, {dtype, test::device()}); }
  std::string dense(const Tensor& q, const Tensor& k, const Tensor& v,
                    const ops::AttentionOptions& options = {}) {
    return test::error_of([&] { ops::scaled_dot_product_attention(q, k, v, options); });
  }
  std::string packed(const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, std::int64_t max_seqlen = 6,
                     const ops::AttentionOptions& options = {}) {
    const Tensor q = some({6, 2, 8});
    return test::error_of([&] {
      ops::scaled_dot_product_attention_varlen(q, q, q, cu_seqlens_q, cu_seqlens_k, max_seqlen, max_seqlen,
                                               options);
    });
  }
  std::string cached(const ops::AttentionCache& cache) {
    const Tensor q = some({2, 1, 2, 8});
    return test::error_of([&] { ops::scaled_dot_product_attention_with_cache(q, cache); });
  }
  const std::string kDense = "[scaled_dot_product_attention] ",
                    kPacked = "[scaled_dot_product_attention_varlen] ",
                    kCached = "[scaled_dot_product_attention_with_cache] ";
};

TEST_F(AttentionErrors, NameShapesAndDtypes) {
  const Tensor q = some({1, 4, 4, 8}), kv = some({1, 4, 3, 8});
  EXPECT_EQ(dense(q, kv, kv), kDense
                                  + "q (1, 4, 4, 8) has 4 heads: expected a multiple of the 3 key/value heads of "
                                    "k (1, 4, 3, 8)");
  EXPECT_EQ(dense(q, some({1, 4, 4, 4}), some({1, 4, 4, 4})),
            kDense + "q (1, 4, 4, 8) and k (1, 4, 4, 4) must agree in head_dim");
  EXPECT_EQ(dense(q, some({2, 4, 4, 8}), some({2, 4, 4, 8})),
            kDense + "q (1, 4, 4, 8) and k (2, 4, 4, 8) must agree in batch");
  EXPECT_EQ(dense(q, q, some({1, 5, 4, 8})),
            kDense + "k (1, 4, 4, 8) and v (1, 5, 4, 8) must have equal shapes");
  EXPECT_EQ(dense(q, q.to(DType::bf16), q),
            kDense + "q is f32, another operand bf16: expected one floating dtype");
  EXPECT_EQ(dense(q[0], q[0], q[0]),
            kDense + "shape (4, 4, 8): expected (batch, seqlen, num_heads, head_dim)");
}

TEST_F(AttentionErrors, NameOptions) {
  const Tensor q = some({1, 4, 4, 8});
  EXPECT_EQ(dense(q, q, q, {.dropout_p = 1}), kDense + "dropout_p 1: expected a probability in [0, 1)");
  EXPECT_EQ(dense(q, q, q, {.softcap = -2}), kDense + "softcap -2: expected 0 (none) or a positive number");
  EXPECT_EQ(
      dense(q, q, q, {.bias = some({4, 5})}),
      kDense + "bias (4, 5) does not broadcast to (batch, num_heads, seqlen_q, seqlen_k) = (1, 4, 4, 4)");
  EXPECT_EQ(dense(q, q, q, {.bias = some({4, 4}, DType::bf16)}),
            kDense + "bias is bf16, q f32: expected one dtype");
  EXPECT_EQ(dense(q, q, q, {.bias = some({4, 4}).set_requires_grad(true)}),
            kDense + "bias requires a gradient, which is not supported: pass bias.detach()");
  EXPECT_EQ(dense(q, q, q, {.alibi_slopes = some({3})}),
            kDense + "alibi_slopes (3,) f32: expected a contiguous (4,) f32, one for each head of q");
}

TEST_F(AttentionErrors, NameCuSeqlens) {
  const Tensor good = indices({0, 2, 6}, {3});
  EXPECT_EQ(packed(good.to(DType::i64), good),
            kPacked + "cu_seqlens_q (3,) i64: expected a contiguous (batch + 1) i32");
  EXPECT_EQ(packed({}, good), kPacked + "cu_seqlens_q is undefined: expected (batch + 1) i32");
  EXPECT_EQ(packed(good, indices({0, 6}, {2})),
            kPacked + "cu_seqlens_q (3,) and cu_seqlens_k (2,) must have equal shapes");
  EXPECT_EQ(packed(good, good, 6, {.bias = some({1})}),
            kPacked + "a bias is not supported for packed batches");
  if (!test::device().is_cpu()) return;  // noted by the kernel
  EXPECT_EQ(packed(good, indices({0, 2, 5}, {3})),
            kPacked + "cu_seqlens_k goes from 0 to 5: expected from 0 to the 6 rows of k");
  EXPECT_EQ(packed(indices({0, 7, 6}, {3}), good, 7),
            kPacked + "cu_seqlens_q[2] = 6 follows 7: expected it not to fall");
  EXPECT_EQ(packed(good, good, 3),
            kPacked + "item 1 of cu_seqlens_q has 4 rows: expected at most max_seqlen_q = 3");
}

TEST_F(AttentionErrors, NameTheCache) {
  const Tensor kv = some({2, 10, 2, 8}), lengths = indices({3, 10}, {2});
  EXPECT_EQ(cached({kv, kv, {}}), kCached + "seqlens_k is undefined: expected (batch) i32");
  EXPECT_EQ(cached({kv, kv, indices({3}, {1})}),
            kCached + "seqlens_k (1,): expected one for each of the 2 items of q");
  EXPECT_EQ(cached({some({3, 10, 2, 8}), some({3, 10, 2, 8}), lengths}),
            kCached + "q (2, 1, 2, 8) and k (3, 10, 2, 8) must agree in batch");
  EXPECT_EQ(cached({kv, kv, lengths, indices({0}, {1, 1})}),
            kCached + "block_table (1, 1): expected a row for each of the 2 items of q");
  EXPECT_EQ(cached({kv.clone().set_requires_grad(true), kv, lengths}),
            kCached + "an operand requires a gradient, which a cache does not support: use NoGradGuard");
  if (!test::device().is_cpu()) return;  // noted by the kernel
  EXPECT_EQ(cached({kv, kv, indices({3, 11}, {2})}),
            kCached + "seqlens_k[1] = 11: expected 0 to 10, what the cache holds of an item");
  EXPECT_EQ(cached({kv, kv, lengths, indices({0, 2}, {2, 1})}),
            kCached + "block_table[1, 0] = 2: expected one of the 2 pages");
}

}  // namespace
}  // namespace ergon
