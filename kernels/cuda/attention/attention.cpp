// The contract of kernels/attention.h on CUDA.

#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "kernels/cuda/attention/kernel.h"
#include "kernels/cuda/attention/shapes.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/providers/cudnn_attention.h"
#include "kernels/providers.h"

namespace ergon::kernels::cuda {
namespace {

using namespace attention_detail;  // NOLINT: the other half of this file

constexpr std::int64_t kMaxSeqlen = 1 << 28;  // positions and their differences are ints in the kernels

void check(const AttentionParams& p) {
  ERGON_CHECK(p.head_dim <= 256, "[attention] head_dim {} on cuda: expected at most 256", p.head_dim);
  ERGON_CHECK(p.batch <= 65535 && p.num_heads <= 65535,
              "[attention] batch {} and {} heads on cuda: expected at most 65535 of each", p.batch,
              p.num_heads);
  ERGON_CHECK(p.seqlen_q <= kMaxSeqlen && p.seqlen_k <= kMaxSeqlen,
              "[attention] {} queries and {} keys on cuda: expected at most 2^28 of each", p.seqlen_q,
              p.seqlen_k);
}

// Can the tensor-core kernels read and write its rows?
bool in_chunks(const AttentionOperand& operand) {
  constexpr std::int64_t kMaxStride = std::int64_t{1}
                                      << 27;  // steps within a tile are 32-bit numbers of bytes
  return reinterpret_cast<std::uintptr_t>(operand.data) % 16 == 0 && operand.batch_stride % 8 == 0
         && operand.seqlen_stride % 8 == 0 && operand.head_stride % 8 == 0 && operand.seqlen_stride >= 0
         && operand.seqlen_stride < kMaxStride;
}

bool by_tensor_cores(const AttentionParams& p) {
  return size_of(p.dtype) == 2 && p.head_dim % 8 == 0 && in_chunks(p.q) && in_chunks(p.k) && in_chunks(p.v)
         && in_chunks(p.o) && in_chunks(p.dout) && in_chunks(p.dq) && in_chunks(p.dk) && in_chunks(p.dv);
}

Arguments arguments_of(const AttentionParams& p) {
  Arguments a = {};
  a.params = p;
  const auto limit = [](std::int64_t window) {
    return static_cast<int>(window < 0 ? kMaxSeqlen : std::min(window, kMaxSeqlen));
  };
  a.left = limit(p.window_left);
  a.right = p.causal ? 0 : limit(p.window_right);
  a.dropout_threshold = static_cast<std::int32_t>(std::ceil(p.dropout_p * 0x1p24));
  a.kept_scale = static_cast<float>(1 / (1 - p.dropout_p));
  a.softcap_inverse = p.softcap > 0 ? 1 / p.softcap : 0;
  a.exponent_scale = static_cast<float>(p.softmax_scale * std::numbers::log2e);
  a.group = static_cast<int>(p.num_heads / std::max<std::int64_t>(p.num_heads_kv, 1));
  if (p.cu_seqlens_q != nullptr) {
    for (AttentionOperand* operand : {&a.params.q, &a.params.k, &a.params.v, &a.params.o, &a.params.dout,
                                      &a.params.dq, &a.params.dk, &a.params.dv}) {
      operand->batch_stride = 0;
    }
  }
  a.featured = p.softcap > 0 || p.bias.data != nullptr || p.alibi_slopes != nullptr || p.dropout_p > 0
               || p.block_table != nullptr || !(p.softmax_scale > 0);
  a.statistics = p.num_heads * (p.cu_seqlens_q != nullptr ? p.total_q : p.batch * p.seqlen_q);
  a.heads_per_tile = 1;
  a.splits = 1;
  a.fault = ergon::detail::index_fault();
  return a;
}

// The forward, with the keys of few queries split among blocks.
Arguments forward_arguments(const AttentionParams& p) {
  Arguments a = arguments_of(p);
  constexpr std::int64_t kFew = 64;     // of rows: a tile has 64 or 128
  constexpr std::int64_t kLeast = 256;  // keys of a split: enough to fill the pipeline
  constexpr std::int64_t kMostSplits = 64;
  if (!by_tensor_cores(p) || p.seqlen_q == 0 || p.seqlen_q * a.group > kFew) return a;
  const std::int64_t blocks = std::max<std::int64_t>(p.batch * p.num_heads_kv, 1);
  const std::int64_t resident = device_limits().multiprocessors * (p.head_dim <= 128 ? 2 : 1);
  a.splits = static_cast<int>(std::clamp<std::int64_t>(
      resident / blocks, 1, std::clamp<std::int64_t>(p.seqlen_k / kLeast, 1, kMostSplits)));
  a.heads_per_tile = a.group;
  a.featured = a.featured || a.splits > 1 || a.group > 1;
  a.partial_o = static_cast<float*>(p.workspace);
  a.partial_lse = a.partial_o + a.splits * a.statistics * p.head_dim;
  return a;
}

// The backward: blocks that add up dq each have sums of their own, unless any order will do.
Arguments backward_arguments(const AttentionParams& p) {
  Arguments a = arguments_of(p);
  constexpr std::int64_t kMostSplits = 16;  // bounds the workspace
  const int dim = padded_dim(p.head_dim, a.featured);
  const BackwardShape shape = backward_shape(dim);
  const std::int64_t tiles = (p.seqlen_k + shape.keys() - 1) / shape.keys();
  const std::int64_t heads = std::max<std::int64_t>(p.batch * p.num_heads_kv, 1);
  const std::int64_t resident = device_limits().multiprocessors;
  const std::int64_t rows = p.cu_seqlens_q != nullptr ? p.total_q : p.batch * p.seqlen_q;
  const std::int64_t most = std::clamp<std::int64_t>(tiles, 1, kMostSplits);
  a.splits = p.deterministic ? static_cast<int>(std::clamp<std::int64_t>(resident / heads, 1, most)) : 1;
  a.key_blocks = p.deterministic ? a.splits : static_cast<int>(tiles);
  a.query_fragments = (rows / 32 + p.batch) * 2;
  a.split_stride = p.num_heads * a.query_fragments * 16 * dim;
  a.query_sums = static_cast<float*>(p.workspace);
  a.query_statistics = reinterpret_cast<float2*>(a.query_sums + a.splits * a.split_stride);
  return a;
}

bool by_cudnn(const AttentionParams& p) {
  return attention_provider() == AttentionProvider::cudnn && by_tensor_cores(p);
}

}  // namespace

std::int64_t attention_forward_workspace(const AttentionParams& p) {
  const Arguments a = forward_arguments(p);
  const std::int64_t bytes =
      a.splits > 1 ? a.splits * a.statistics * (p.head_dim + 1) * std::int64_t{sizeof(float)} : 0;
  return by_cudnn(p) ? std::max(bytes, cudnn_attention_forward_workspace(p)) : bytes;
}

std::int64_t attention_backward_workspace(const AttentionParams& p) {
  if (!by_tensor_cores(p)) return 0;
  const Arguments a = backward_arguments(p);
  const std::int64_t bytes =
      a.splits * a.split_stride * std::int64_t{sizeof(float)} + a.statistics * std::int64_t{sizeof(float2)};
  return by_cudnn(p) ? std::max(bytes, cudnn_attention_backward_workspace(p)) : bytes;
}

void attention_forward(const AttentionParams& p) {
  check(p);
  const Arguments a = forward_arguments(p);
  if (a.statistics == 0) return;
  if (by_cudnn(p) && cudnn_attention_forward(p)) return;
  if (!by_tensor_cores(p)) return launch_simt_forward(a);
  p.dtype == DType::bf16 ? launch_bf16_forward(a) : launch_f16_forward(a);
  if (a.splits > 1) launch_combine(a);
}

void attention_backward(const AttentionParams& p) {
  check(p);
  const Arguments a = backward_arguments(p);
  if (p.batch == 0 || p.num_heads == 0) return;
  if (by_cudnn(p) && cudnn_attention_backward(p)) return;
  if (!by_tensor_cores(p)) return launch_simt_backward(a);
  p.dtype == DType::bf16 ? launch_bf16_backward(a) : launch_f16_backward(a);
}

}  // namespace ergon::kernels::cuda
