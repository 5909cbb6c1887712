#pragma once

// Attention without a stored score matrix: memory grows linearly with the sequence length.

#include <cstdint>
#include <optional>

#include "core/random.h"
#include "core/tensor.h"

namespace ergon::ops {

// For an item with m queries and n keys, query i stands beside key i + n - m: the last query beside the last
// key.
struct AttentionOptions {
  bool causal = false;                                 // a query sees no key after the one it stands beside
  std::optional<double> softmax_scale = std::nullopt;  // 1 / sqrt(head_dim) if not given
  std::int64_t window_left = -1;   // keys that a query sees before the one it stands beside; negative: all
  std::int64_t window_right = -1;  // and after it
  double softcap = 0;              // scores become softcap * tanh(score / softcap); 0: they stay
  // Added to the scores: broadcasts to (batch, num_heads, seqlen_q, seqlen_k); q's dtype; gets no gradient.
  Tensor bias = {};
  // (num_heads) f32: ALiBi (Press et al. 2022, arXiv 2108.12409), a score loses alibi_slopes[h] times the
  // distance of its key from the one its query stands beside.
  Tensor alibi_slopes = {};
  double dropout_p = 0;            // in [0, 1): of the probabilities; the others are scaled by 1 / (1 - p)
  Generator* generator = nullptr;  // of the dropped ones; default_generator() if null
  bool deterministic = true;       // off: CUDA may add up q's gradient in any order, which is faster
  // Gets log(sum(exp(scores))) of each query, f32 (f64 for f64), without a gradient: (batch, num_heads,
  // seqlen_q), or (num_heads, total_q) of a packed batch; -infinity where a query sees no key.
  Tensor* softmax_lse = nullptr;
};

// softmax(scale * q k^T) v for each head (Vaswani et al. 2017, arXiv 1706.03762), differentiable.
//   q      (batch, seqlen_q, num_heads, head_dim)
//   k, v   (batch, seqlen_k, num_heads_kv, head_dim); num_heads must be a multiple of num_heads_kv:
//   grouped-query
//          attention (Ainslie et al. 2023, arXiv 2305.13245), query head h reads key/value head h /
//          (num_heads / num_heads_kv)
// Returns (batch, seqlen_q, num_heads, head_dim); zeros for a query that sees no key. One floating dtype; any
// strides, a last one other than 1 costs a copy. CUDA: head_dim at most 256. Throws Error if the shapes,
// dtypes, devices or options do not fit together.
Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options = {});

// The same for sequences of several lengths, packed one after another: item b has rows cu_seqlens_q[b] to
// cu_seqlens_q[b + 1] of q, and those of cu_seqlens_k of k and v. Items may be empty.
//   q             (total_q, num_heads, head_dim)
//   k, v          (total_k, num_heads_kv, head_dim)
//   cu_seqlens_*  (batch + 1) i32, from 0 to total_*, not falling
//   max_seqlen_*  at least the longest item's length
// No bias. Returns (total_q, num_heads, head_dim). Throws Error as above; cu_seqlens on a CUDA device, which
// cannot be read without waiting, at the next synchronisation.
Tensor scaled_dot_product_attention_varlen(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                           std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
                                           const AttentionOptions& options = {});

// Keys and values of what has been read so far, with room for more.
struct AttentionCache {
  Tensor k, v;       // (batch, capacity, num_heads_kv, head_dim); paged: (pages, page_size, num_heads_kv,
                     // head_dim)
  Tensor seqlens_k;  // (batch) i32: the keys of each item, those of q's tokens among them
  // Paged: (batch, pages of an item) i32, key j of item b is row j % page_size of page
  // block_table[b, j / page_size].
  Tensor block_table = {};
};

// The same for the newest tokens of each item, against a cache that holds their keys and values already. Not
// differentiable: throws Error while recording if an operand requires a gradient. The other errors as above;
// seqlens_k and block_table on a CUDA device, which cannot be read without waiting, at the next
// synchronisation.
//   q  (batch, seqlen_q, num_heads, head_dim)
Tensor scaled_dot_product_attention_with_cache(const Tensor& q, const AttentionCache& cache,
                                               const AttentionOptions& options = {});

}  // namespace ergon::ops
