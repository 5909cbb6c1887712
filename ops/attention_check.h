#pragma once

// What the attention ops demand of their operands; each throws Error naming the op and the operand.

#include "ops/attention.h"

namespace ergon::ops::detail {

// q (..., num_heads, head_dim) and k, v (..., num_heads_kv, head_dim) of `dims` dimensions.
void check_attention_operands(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, int dims);

// `batch`, `seqlen_q` and `seqlen_k` are what a bias broadcasts to.
void check_attention_options(const char* op, const AttentionOptions& options, const Tensor& q,
                             std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k);

// cu_seqlens of `rows` packed rows, named cu_seqlens_`side`.
void check_cu_seqlens(const char* op, char side, const Tensor& cu_seqlens, std::int64_t rows,
                      std::int64_t max_seqlen);

void check_attention_cache(const char* op, const Tensor& q, const AttentionCache& cache);

}  // namespace ergon::ops::detail
