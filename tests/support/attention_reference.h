#pragma once

// Attention by naive loops over whole score matrices: in fp64 the reference, in a lower precision what an
// attention composed of matrix products and a softmax gives, to measure errors against.

#include <vector>

#include "ops/attention.h"

namespace ergon::test {

// A problem as the three attention ops pose it, its elements in fp64.
struct AttentionProblem {
  struct Item {
    std::int64_t first_q, seqlen_q;          // rows of q
    std::vector<std::int64_t> rows_of_keys;  // of k and v
  };
  std::vector<double> q, dout;  // (rows, num_heads, head_dim)
  std::vector<double> k, v;     // (rows, num_heads_kv, head_dim)
  std::int64_t num_heads, num_heads_kv, head_dim;
  std::vector<Item> items;
  std::int64_t seqlen_q, seqlen_k;  // the longest items'
  ops::AttentionOptions options;    // alibi_slopes and the numbers of it
  std::vector<double> bias;         // (batch, num_heads, seqlen_q, seqlen_k), or empty
  PhiloxState dropout_stream;

  // The rows of (batch, seqlen_q, ...) and (batch, seqlen_k, ...) operands.
  static std::vector<Item> dense_items(std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k);
  // The rows of packed batches.
  static std::vector<Item> packed_items(const std::vector<std::int64_t>& seqlens_q,
                                        const std::vector<std::int64_t>& seqlens_k);
};

struct AttentionValues {
  std::vector<double> o, dq, dk, dv;  // in the operands' layouts
  std::vector<double> lse;            // (num_heads, rows of q)
  // How much dq and dk may change for each unit of rounding in o, and in the sum(dout * o) that the backward
  // takes from it: that unit relative to sum(|dout| * p |v|).
  std::vector<double> dq_by_o, dk_by_o;
};

// Every matrix of the computation is rounded to `precision`; sums are accumulated in fp32, in fp64 for f64.
AttentionValues composed_attention(const AttentionProblem& problem, DType precision);
// In long double: the reference where f64 itself is examined.
AttentionValues exact_attention(const AttentionProblem& problem);

}  // namespace ergon::test
