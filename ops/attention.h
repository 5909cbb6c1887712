#pragma once

#include <optional>

#include "core/tensor.h"

namespace ergon::ops {

struct AttentionOptions {
  bool causal = false;  // key j is seen by query i if j <= i + seqlen_k - seqlen_q
  std::optional<double> softmax_scale = std::nullopt;  // 1 / sqrt(head_dim) if not given
};

// softmax(scale * q k^T) v for each head (Vaswani et al. 2017, arXiv 1706.03762), differentiable.
//   q      (batch, seqlen_q, num_heads, head_dim)
//   k, v   (batch, seqlen_k, num_heads_kv, head_dim); num_heads must be a multiple of num_heads_kv:
//   grouped-query
//          attention (Ainslie et al. 2023, arXiv 2305.13245), query head h reads key/value head h /
//          (num_heads / num_heads_kv)
// Returns (batch, seqlen_q, num_heads, head_dim). One floating dtype; any strides, a last one other than 1
// costs a copy. The score matrix is never stored. Throws Error if the shapes, dtypes or devices do not fit
// together.
Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options = {});

}  // namespace ergon::ops
