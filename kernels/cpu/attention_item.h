#pragma once

// Items of attention's batch: where their rows lie, and which keys a query sees.

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"

namespace ergon::kernels::cpu::attention_detail {

using std::int64_t;

struct Range {
  int64_t begin, end;

  bool empty() const { return begin >= end; }
  Range within(Range other) const { return {std::max(begin, other.begin), std::min(end, other.end)}; }
  Range minus(int64_t offset) const { return {begin - offset, end - offset}; }
};

// The rows (seqlen, head_dim) of one head of one item; those of a paged cache lie where `pages` says.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  const std::int32_t* pages = nullptr;
  int64_t page_size = 1, page_stride = 0;

  T* operator[](int64_t i) const {
    if (pages == nullptr) return data + i * stride;
    return data + pages[i / page_size] * page_stride + i % page_size * stride;
  }
};

// One item of the batch.
class Item {
 public:
  Item(const AttentionParams& params, int64_t index)
      : batch(index),
        first_q(params.cu_seqlens_q == nullptr ? 0 : params.cu_seqlens_q[index]),
        first_k(params.cu_seqlens_k == nullptr ? 0 : params.cu_seqlens_k[index]),
        seqlen_q(params.cu_seqlens_q == nullptr ? params.seqlen_q : params.cu_seqlens_q[index + 1] - first_q),
        seqlen_k(params.cu_seqlens_k != nullptr ? params.cu_seqlens_k[index + 1] - first_k
                 : params.seqlens_k != nullptr  ? params.seqlens_k[index]
                                                : params.seqlen_k),
        p_(params) {
    const int64_t unlimited = seqlen_q + seqlen_k;
    left_ = params.window_left < 0 ? unlimited : std::min(params.window_left, unlimited);
    right_ = params.causal             ? 0
             : params.window_right < 0 ? unlimited
                                       : std::min(params.window_right, unlimited);
  }

  // Query i stands beside key i + diagonal().
  int64_t diagonal() const { return seqlen_k - seqlen_q; }
  // Keys that query i sees. Both ends grow with i.
  Range keys_of(int64_t i) const {
    const int64_t beside = i + diagonal();
    return {std::clamp<int64_t>(beside - left_, 0, seqlen_k),
            std::clamp<int64_t>(beside + right_ + 1, 0, seqlen_k)};
  }
  // Keys that one of the queries sees.
  Range keys_of(Range queries) const { return {keys_of(queries.begin).begin, keys_of(queries.end - 1).end}; }
  // Queries that see one of the keys.
  Range queries_of(Range keys) const {
    return Range{keys.begin - right_ - diagonal(), keys.end + left_ - diagonal()}.within({0, seqlen_q});
  }

  template <class T>
  Rows<T> query_rows(const AttentionOperand& operand, int64_t head) const {
    const int64_t first =
        p_.cu_seqlens_q == nullptr ? batch * operand.batch_stride : first_q * operand.seqlen_stride;
    return {static_cast<T*>(operand.data) + first + head * operand.head_stride, operand.seqlen_stride};
  }
  template <class T>
  Rows<T> key_rows(const AttentionOperand& operand, int64_t head) const {
    T* const data = static_cast<T*>(operand.data) + head * operand.head_stride;
    if (p_.block_table != nullptr) {
      return {data, operand.seqlen_stride, p_.block_table + batch * p_.block_table_stride, p_.page_size,
              operand.batch_stride};
    }
    const int64_t first =
        p_.cu_seqlens_k == nullptr ? batch * operand.batch_stride : first_k * operand.seqlen_stride;
    return {data + first, operand.seqlen_stride};
  }
  // Where softmax_lse of query 0 is, in elements, and what else there is one of for each query.
  int64_t statistics(int64_t head) const {
    return p_.cu_seqlens_q == nullptr ? (batch * p_.num_heads + head) * p_.seqlen_q
                                      : head * p_.total_q + first_q;
  }

  const int64_t batch, first_q, first_k, seqlen_q, seqlen_k;

 private:
  int64_t left_, right_;
  const AttentionParams& p_;
};

}  // namespace ergon::kernels::cpu::attention_detail
