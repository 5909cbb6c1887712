#pragma once

// Scaled dot-product attention without a materialised score matrix.

#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

// A (batch, seqlen, heads, head_dim) operand: strides in elements, that of head_dim is 1.
struct AttentionOperand {
  void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t seqlen_stride = 0;
  std::int64_t head_stride = 0;
};

// o[b,i,h,:] = sum_j p[b,h,i,j] v[b,j,hk,:]
// p[b,h,i,j] = exp(scale * <q[b,i,h,:], k[b,j,hk,:]> - softmax_lse[b,h,i]),  hk = h / (num_heads /
// num_heads_kv) softmax_lse = log(sum_j exp(scale * <q, k>)); causal leaves out j > i + seqlen_k - seqlen_q
// (bottom-right aligned). A row without any key gives o = 0 and softmax_lse = -inf.
//
// q, o          (batch, seqlen_q, num_heads, head_dim)     f32 | bf16 | f16 | f64, all of one dtype
// k, v          (batch, seqlen_k, num_heads_kv, head_dim)
// softmax_lse   (batch, num_heads, seqlen_q)               f32, or f64 with f64 operands; may be null in a
// forward
//
// Backward: dq, dk, dv = (not +=). The scores are computed again from q, k and softmax_lse, in blocks of
// rows. Scores, statistics and gradients are accumulated in fp32 (f64 for f64). Deterministic: one thread
// owns a key/value head. Scratch on the CPU: O(seqlen_k * head_dim) a thread. Flops: 4 * batch * num_heads *
// seqlen_q * seqlen_k * head_dim forward, 10 * backward; causal about half of it. Bytes: each operand once, k
// and v once a block of query rows.
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
  AttentionOperand q = {}, k = {}, v = {}, o = {};
  void* softmax_lse = nullptr;
  AttentionOperand dout = {}, dq = {}, dk = {}, dv = {};  // backward only
};

namespace cpu {

void attention_forward(const AttentionParams& params);
void attention_backward(const AttentionParams& params);

}  // namespace cpu

// head_dim up to 256, else Error. Scores live in shared memory; nothing else is stored. Forward: k and v are
// read once for every 32 rows of q (16 for head_dim above 64, 8 in f64); backward: q, dout and o once for
// every so many rows of k, and k and v as in the forward.
namespace cuda {

void attention_forward(const AttentionParams& params);
void attention_backward(const AttentionParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
