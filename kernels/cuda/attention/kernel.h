#pragma once

// The kernels of this folder, as the host sees them.

#include <cstdint>

#include <vector_types.h>

#include "core/cuda/index_fault.h"
#include "kernels/attention.h"

namespace ergon::kernels::cuda::attention_detail {

// What kernels are launched with: the contract's parameters, and what the host has worked out from them.
struct Arguments {
  AttentionParams params;
  // Query i sees keys i + keys - queries - left to i + keys - queries + right; causal is right = 0.
  int left, right;
  std::int32_t dropout_threshold;  // kept: the upper 24 bits of a word are at least this
  float kept_scale;                // 1 / (1 - dropout_p)
  double softcap_inverse;          // 1 / softcap
  float exponent_scale;            // from products of q and k to exponents of 2: softmax_scale * log2(e)
  int group;                       // query heads of a key/value head
  ergon::detail::IndexFault* fault;

  // Of the tensor-core kernels.
  bool featured;            // more than masks and packed batches
  int heads_per_tile;       // query heads of one key/value head whose rows lie side by side in a tile
  int splits;               // of the keys; above 1, each leaves a part that launch_combine adds up
  std::int64_t statistics;  // elements of softmax_lse
  float* partial_o;         // (splits, statistics, head_dim)
  float* partial_lse;       // (splits, statistics)

  // Of their backward.
  int key_blocks;  // that take turns with a head's key tiles; as many as splits, if there are several
  float2* query_statistics;  // (statistics): softmax_lse * log2(e), delta
  float* query_sums;         // (splits, num_heads, query_fragments, 16 * padded head_dim): dq / softmax_scale
  std::int64_t query_fragments;  // of 16 rows
  std::int64_t split_stride;
};

// 16-bit operands in rows of 16-byte chunks.
void launch_bf16_forward(const Arguments& arguments);
void launch_f16_forward(const Arguments& arguments);
void launch_bf16_backward(const Arguments& arguments);
void launch_f16_backward(const Arguments& arguments);

// o and softmax_lse from the splits' parts.
void launch_combine(const Arguments& arguments);

// Any dtype, strides and head_dim up to 256; softmax_lse in fp32 (f64 for f64).
void launch_simt_forward(const Arguments& arguments);
void launch_simt_backward(const Arguments& arguments);

}  // namespace ergon::kernels::cuda::attention_detail
