#pragma once

// The kernels of this folder, as the host sees them.

#include <cstdint>

#include "kernels/attention.h"

namespace ergon::kernels::cuda::attention_detail {

// What kernels are launched with: the contract's parameters, and what the host has worked out from them.
struct Arguments {
  AttentionParams params;
  // Query i sees keys i + keys - queries - left to i + keys - queries + right; causal is right = 0.
  int left, right;
  std::int32_t dropout_threshold;  // kept: the upper 24 bits of a word are at least this
  double kept_scale;               // 1 / (1 - dropout_p)

  // Of the tensor-core kernels.
  bool featured;            // more than masks and packed batches
  int heads_per_tile;       // query heads of one key/value head whose rows lie side by side in a tile
  int splits;               // of the keys; above 1, each leaves a part that launch_combine adds up
  std::int64_t statistics;  // elements of softmax_lse
  float* partial_o;         // (splits, statistics, head_dim)
  float* partial_lse;       // (splits, statistics)
};

// 16-bit operands in rows of 16-byte chunks.
void launch_bf16_forward(const Arguments& arguments);
void launch_f16_forward(const Arguments& arguments);

// o and softmax_lse from the splits' parts.
void launch_combine(const Arguments& arguments);

// Any dtype, strides and head_dim up to 256; softmax_lse in fp32 (f64 for f64).
void launch_simt_forward(const Arguments& arguments);
void launch_simt_backward(const Arguments& arguments);

}  // namespace ergon::kernels::cuda::attention_detail
