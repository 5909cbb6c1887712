#pragma once

// What every attention kernel asks about one item of the batch and one head: where rows are, which keys a
// query sees, what a product of q and k becomes, which probabilities dropout keeps.

#include "core/cuda/index_fault.h"
#include "core/cuda/types.cuh"
#include "kernels/cuda/attention/kernel.h"

namespace ergon::kernels::cuda::attention_detail {

using namespace device;

// x, as if it changed: what follows from it is computed where it is used, instead of before a loop that it
// would take registers in.
__device__ __forceinline__ int here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Reads an element of a dtype known at run time.
template <class Acc>
__device__ __forceinline__ Acc read(const void* data, DType dtype, std::int64_t at) {
  if constexpr (sizeof(Acc) == 8) {
    return static_cast<const double*>(data)[at];
  } else {
    switch (dtype) {
      case DType::bf16:
        return convert<float>(static_cast<const bf16*>(data)[at]);
      case DType::f16:
        return convert<float>(static_cast<const f16*>(data)[at]);
      default:
        return static_cast<const float*>(data)[at];
    }
  }
}

// The rows of item b of a packed batch, `first` its first one. Noted as a fault, and none, if cu_seqlens does
// not rise from 0 to `total`, or an item is longer than `longest`.
__device__ __forceinline__ int packed_rows(const Arguments& a, const char* name, const char* length_name,
                                           const std::int32_t* cu_seqlens, int b, std::int64_t total,
                                           std::int64_t longest, int& first) {
  first = cu_seqlens[b];
  const int end = cu_seqlens[b + 1];
  const bool last = b + 1 == a.params.batch;
  if (b == 0 && first != 0) {
    raise_index_fault(a.fault, name, first, 0, 1, 0);
  } else if (first < 0 || first > total) {  // noted for the item before
  } else if (end < first || end > total || (last && end < total)) {
    raise_index_fault(a.fault, name, end, last ? total : first, total + 1, b + 1);
  } else if (end - first > longest) {
    raise_index_fault(a.fault, length_name, end - first, 0, longest + 1, b);
  } else {
    return end - first;
  }
  return first = 0;
}

struct Item {
  int queries, keys;
  int shift;             // keys - queries: query i is at key i + shift
  int first_q, first_k;  // rows before the item's in a packed batch
  int left, right;
  int index;

  __device__ __forceinline__ Item(const Arguments& a, int b)
      : queries(static_cast<int>(a.params.seqlen_q)),
        keys(static_cast<int>(a.params.seqlen_k)),
        first_q(0),
        first_k(0),
        left(a.left),
        right(a.right),
        index(b) {
    const AttentionParams& p = a.params;
    if (p.cu_seqlens_q != nullptr) {
      queries = packed_rows(a, "[scaled_dot_product_attention_varlen] cu_seqlens_q",
                            "[scaled_dot_product_attention_varlen] length by cu_seqlens_q", p.cu_seqlens_q, b,
                            p.total_q, p.seqlen_q, first_q);
      keys = packed_rows(a, "[scaled_dot_product_attention_varlen] cu_seqlens_k",
                         "[scaled_dot_product_attention_varlen] length by cu_seqlens_k", p.cu_seqlens_k, b,
                         p.total_k, p.seqlen_k, first_k);
    } else if (p.seqlens_k != nullptr) {
      keys = p.seqlens_k[b];
      if (keys < 0 || keys > p.seqlen_k) {
        raise_index_fault(a.fault, "[scaled_dot_product_attention_with_cache] seqlens_k", keys, 0,
                          p.seqlen_k + 1, b);
        keys = 0;
      }
    }
    shift = keys - queries;
  }

  // Query i sees keys first_key(i) to end_key(i) - 1, perhaps none. Neither ever falls as i grows.
  __device__ __forceinline__ int first_key(int i) const { return max(i + shift - left, 0); }
  __device__ __forceinline__ int end_key(int i) const { return min(i + shift + right + 1, keys); }
  // Key j is seen by queries first_query(j) to end_query(j) - 1.
  __device__ __forceinline__ int first_query(int j) const { return max(j - shift - right, 0); }
  __device__ __forceinline__ int end_query(int j) const { return min(j - shift + left + 1, queries); }
  __device__ __forceinline__ bool sees(int i, int j) const { return j >= first_key(i) && j < end_key(i); }

  // Where row i of head h begins, in elements.
  __device__ __forceinline__ std::int64_t query_row(const AttentionOperand& operand, int h, int i) const {
    return index * operand.batch_stride + (first_q + i) * operand.seqlen_stride + h * operand.head_stride;
  }
  __device__ __forceinline__ std::int64_t key_row(const AttentionOperand& operand, int h, int j) const {
    return index * operand.batch_stride + (first_k + j) * operand.seqlen_stride + h * operand.head_stride;
  }
  // The same where there may be pages; of page 0 instead of one that there is not.
  __device__ __forceinline__ std::int64_t cached_row(const Arguments& a, const AttentionOperand& operand,
                                                     int h, int j) const {
    const AttentionParams& p = a.params;
    if (p.block_table == nullptr) return key_row(operand, h, j);
    const int page_size = static_cast<int>(p.page_size);
    const std::int64_t entry = index * p.block_table_stride + j / page_size;
    std::int64_t page = p.block_table[entry];
    if (page < 0 || page >= p.pages) {
      raise_index_fault(a.fault, "[scaled_dot_product_attention_with_cache] block_table", page, 0, p.pages,
                        entry);
      page = 0;
    }
    return page * operand.batch_stride + j % page_size * operand.seqlen_stride + h * operand.head_stride;
  }
  // Of softmax_lse and of what else there is one of for each query.
  __device__ __forceinline__ std::int64_t statistic(const AttentionParams& p, int h, int i) const {
    return p.cu_seqlens_q != nullptr ? h * p.total_q + first_q + i
                                     : (index * p.num_heads + h) * p.seqlen_q + i;
  }
};

// From a product of q and k to a score, for one head of one item.
template <class Acc>
class Scores {
 public:
  __device__ __forceinline__ Scores(const Arguments& a, DType dtype, const Item& item, int h)
      : bias_(a.params.bias),
        bias_at_(item.index * a.params.bias.batch_stride + h * a.params.bias.head_stride),
        dtype_(dtype),
        scale_(static_cast<Acc>(a.params.softmax_scale)),
        softcap_(static_cast<Acc>(a.params.softcap)),
        softcap_inverse_(static_cast<Acc>(a.softcap_inverse)),
        slope_(a.params.alibi_slopes != nullptr ? static_cast<Acc>(a.params.alibi_slopes[h]) : Acc(0)),
        shift_(item.shift) {}

  __device__ __forceinline__ Acc score(Acc product, int i, int j) const {
    Acc score = scale_ * product;
    if (softcap_ > 0) score = softcap_ * capped(score);
    if (bias_.data != nullptr)
      score += read<Acc>(bias_.data, dtype_, bias_at_ + i * bias_.q_stride + j * bias_.k_stride);
    return score - slope_ * static_cast<Acc>(abs(i + shift_ - j));
  }
  // d score / d (scale * product)
  __device__ __forceinline__ Acc slope_of_cap(Acc product) const {
    if (softcap_ <= 0) return 1;
    const Acc t = capped(scale_ * product);
    return 1 - t * t;
  }
  __device__ __forceinline__ Acc scale() const { return scale_; }

 private:
  // tanh(score / softcap). In fp32 by the exponential, exact to 2^-23 of 1: a score is to be exact to so much
  // of softcap.
  __device__ __forceinline__ Acc capped(Acc score) const {
    if constexpr (sizeof(Acc) == 8) {
      return tanh(score * softcap_inverse_);
    } else {
      return 1 - 2 / (1 + exp(2 * score / softcap_));
    }
  }

  AttentionBias bias_;
  std::int64_t bias_at_;
  DType dtype_;
  Acc scale_, softcap_, softcap_inverse_, slope_;
  int shift_;
};

// Which probabilities of one query of one head dropout keeps.
class DropoutRow {
 public:
  __device__ __forceinline__ DropoutRow(const Arguments& a, const Item& item, int h, int i) : a_(a) {
    const AttentionParams& p = a.params;
    const std::int64_t row = (item.index * p.num_heads + h) * p.seqlen_q + i;
    first_block_ = p.dropout_stream.offset + static_cast<std::uint64_t>(row * ((p.seqlen_k + 3) / 4));
  }
  // The words of keys 4 * block to 4 * block + 3.
  __device__ __forceinline__ uint4 words(int block) const {
    const auto w =
        philox4x32(a_.params.dropout_stream.seed, first_block_ + static_cast<std::uint64_t>(block));
    return {w[0], w[1], w[2], w[3]};
  }
  __device__ __forceinline__ bool keeps(std::uint32_t word) const {
    return static_cast<std::int32_t>(word >> 8) >= a_.dropout_threshold;
  }
  __device__ __forceinline__ bool kept(int j) const {
    const uint4 w = words(j / 4);
    return keeps(j % 4 < 2 ? (j % 4 == 0 ? w.x : w.y) : (j % 4 == 2 ? w.z : w.w));
  }

 private:
  const Arguments& a_;
  std::uint64_t first_block_;
};

}  // namespace ergon::kernels::cuda::attention_detail
