#pragma once

// Scaled dot-product attention without a materialised score matrix.

#include <cstdint>

#include "core/dtype.h"
#include "core/random.h"

namespace ergon::kernels {

// A (batch, seqlen, heads, head_dim) operand: strides in elements, that of head_dim is 1. A packed batch is
// (total, heads, head_dim), its batch_stride unused; paged keys and values are (pages, page_size, heads,
// head_dim), their batch_stride a page's.
struct AttentionOperand {
  void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t seqlen_stride = 0;
  std::int64_t head_stride = 0;
};

// A (batch, num_heads, seqlen_q, seqlen_k) bias of the operands' dtype; a stride of 0 broadcasts.
struct AttentionBias {
  const void* data = nullptr;
  std::int64_t batch_stride = 0, head_stride = 0, q_stride = 0, k_stride = 0;
};

// o[b,i,h,:] = sum_j d[b,h,i,j] p[b,h,i,j] v[b,j,hk,:],  hk = h / (num_heads / num_heads_kv)
// p[b,h,i,j] = exp(s[b,h,i,j] - softmax_lse[b,h,i]),  softmax_lse[b,h,i] = log(sum_j exp(s[b,h,i,j]))
// s = cap(softmax_scale * <q[b,i,h,:], k[b,j,hk,:]>) + bias[b,h,i,j] - alibi_slopes[h] * |i + n - m - j|
// cap(x) = softcap * tanh(x / softcap), or x for softcap 0;  d = kept ? 1 / (1 - dropout_p) : 0
// m, n: this item's numbers of queries and keys. Query i sees key j if
//   i + n - m - window_left <= j <= i + n - m + window_right    (a negative window is unlimited)
// and, if causal, j <= i + n - m (bottom-right aligned). A row that sees no key gives o = 0 and
// softmax_lse = -inf. What keys and values that no query sees hold, and q and dout of queries that see no
// key, does not matter, be it NaN. A NaN or infinity that some queries see may reach others of their tile
// too, whose probabilities of 0 it is multiplied by.
//
// q, o          (batch, seqlen_q, num_heads, head_dim)     f32 | bf16 | f16 | f64, all of one dtype
// k, v          (batch, seqlen_k, num_heads_kv, head_dim)
// softmax_lse   (batch, num_heads, seqlen_q)               f32, or f64 with f64 operands; may be null in a
//                                                          forward
//
// softmax_lse_residual, of softmax_lse's shape, f32, with f32 operands only: log(sum_j exp(s[b,h,i,j])) -
// softmax_lse, what rounding takes away, which where scores are large is an error common to a row's
// probabilities (docs/attention.md). Null: a forward does not store it, a backward takes 0. 16-bit operands'
// probabilities are rounded by more, f64's softmax_lse by little.
//
// Packed batches (both cu_seqlens): item b has rows cu_seqlens[b] to cu_seqlens[b + 1] of q and o, or of k
// and v; seqlen_q and seqlen_k are the longest items'; softmax_lse is (num_heads, total_q); no bias.
// A cache (forward only): item b has seqlens_k[b] keys, at most seqlen_k. With block_table its keys lie in
// pages: key j is row j % page_size of page block_table[b * block_table_stride + j / page_size].
//
// Dropout: kept = uniform_from_bits(word w of the stream) >= dropout_p, w = ((b * num_heads + h) * seqlen_q +
// i) * round_up(seqlen_k, 4) + j, so that four keys of a row share a Philox block. The mask is not stored;
// the backward computes it again.
//
// Backward: dq, dk, dv = (not +=); the bias gets no gradient. The scores are computed again from q, k and
// softmax_lse, tile by tile. Scores, statistics and gradients are accumulated in fp32 (f64 for f64).
// Deterministic, unless `deterministic` is off. Flops: 4 * batch * num_heads * seqlen_q * seqlen_k * head_dim
// forward, 10 * backward; causal about half of it.
struct AttentionParams {
  DType dtype = DType::f32;
  std::int64_t batch = 0;
  std::int64_t seqlen_q = 0;
  std::int64_t seqlen_k = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_heads_kv = 0;
  std::int64_t head_dim = 0;
  double softmax_scale = 1;
  bool causal = false;
  std::int64_t window_left = -1, window_right = -1;
  double softcap = 0;
  AttentionBias bias = {};
  const float* alibi_slopes = nullptr;  // (num_heads)
  double dropout_p = 0;                 // in [0, 1)
  PhiloxState dropout_stream = {};
  // The next four on the operands' device.
  const std::int32_t* cu_seqlens_q = nullptr;  // (batch + 1)
  const std::int32_t* cu_seqlens_k = nullptr;  // (batch + 1)
  const std::int32_t* seqlens_k = nullptr;     // (batch)
  const std::int32_t* block_table = nullptr;   // (batch, block_table_stride)
  std::int64_t block_table_stride = 0;
  std::int64_t page_size = 0;
  std::int64_t pages = 0;                 // that k and v have
  std::int64_t total_q = 0, total_k = 0;  // rows of q, and of k and v, in a packed batch
  AttentionOperand q = {}, k = {}, v = {}, o = {};
  void* softmax_lse = nullptr;
  float* softmax_lse_residual = nullptr;
  AttentionOperand dout = {}, dq = {}, dk = {}, dv = {};  // backward only
  void* workspace = nullptr;  // attention_..._workspace() bytes on the operands' device, aligned to 16
  bool deterministic = true;  // backward; off: CUDA may add up dq in any order, which is faster
};

// Forward, decoding: with at most 4 rows of q for each key/value head, and many more keys, keys are split
// into parts of at least 64 if there are few items, and read in the order of a cache. Other keys of at most
// 16 queries are split into parts of at least 512 if there is little else to share among threads. Results do
// not depend on the number of threads.
namespace cpu {

void attention_forward(const AttentionParams& params);
void attention_backward(const AttentionParams& params);
std::int64_t attention_forward_workspace(const AttentionParams& params);
inline std::int64_t attention_backward_workspace(const AttentionParams&) { return 0; }

}  // namespace cpu

// head_dim up to 256, else Error. cu_seqlens, seqlens_k and block_table are checked where they are read: an
// item out of range counts as empty, a page as page 0, and the next synchronisation throws Error.
//
// bf16 and f16 whose data is aligned to 16 bytes, with head_dim and strides multiples of 8, run on tensor
// cores (docs/attention.md); probabilities and gradients of scores are rounded to the dtype there, as
// products need them. Everything else has one thread for a few elements, in fp32 or f64, and reads k and v
// once for every 32 rows of q (16 for head_dim above 64, 8 in f64): tf32 products would be less exact than
// fp32's.
//
// Forward on tensor cores, bytes from memory or L2: q and o once, 4 for each row's softmax_lse, and k and v
// once for every tile of 128 rows of q (64 for head_dim above 128) and query head, as far as any row of the
// tile sees them:
//   batch * num_heads * (seqlen_q * (4 * head_dim + 4) + ceil(seqlen_q / 128) * seqlen_k * 4 * head_dim)
// with every tile seen whole; causal about half of the second term. The keys of at most 64 rows of a
// key/value head, as in decoding, are split among blocks, whose parts a second kernel adds up in their order;
// the query heads of a group then share one tile, so that k and v are read once. The number of splits depends
// on the device's multiprocessors, and with it the last bits.
//
// Backward on tensor cores, bytes from memory or L2: k, v, o, softmax_lse, dq, dk and dv once, dout once
// more, and for every tile of 128 keys (64 for D = 32 and 256) of every key/value head q, dout and two
// numbers of the rows that see any of them, and an fp32 sum of dq for each of their elements, read and
// written:
//   batch * (num_heads_kv * seqlen_k * 8 * head_dim + num_heads * seqlen_q
//            * (6 * head_dim + 12 + 8 * splits * D + ceil(seqlen_k / 128) * (4 * head_dim + 8 + 8 * D)))
// with every tile seen whole. The sums lie in the workspace, a set of them, first zeroed and at last read,
// for each of `splits` blocks that share a key/value head: multiprocessors / (batch * num_heads_kv), at least
// 1 and at most 16 or as many as tiles; 1 if not deterministic. Its bytes:
//   4 * splits * num_heads * 32 * (rows of q / 32 + batch) * D + 8 * num_heads * rows of q,
// D = head_dim rounded up to 32, 64, 128 or 256, with features (docs/attention.md) at least 64. 0 for
// everything else.
namespace cuda {

void attention_forward(const AttentionParams& params);
void attention_backward(const AttentionParams& params);
std::int64_t attention_forward_workspace(const AttentionParams& params);
std::int64_t attention_backward_workspace(const AttentionParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
