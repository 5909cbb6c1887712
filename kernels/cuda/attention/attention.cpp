// The contract of kernels/attention.h on CUDA.

#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "kernels/cuda/attention/kernel.h"

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

Arguments arguments_of(const AttentionParams& p) {
  Arguments a = {};
  a.params = p;
  const auto limit = [](std::int64_t window) {
    return static_cast<int>(window < 0 ? kMaxSeqlen : std::min(window, kMaxSeqlen));
  };
  a.left = limit(p.window_left);
  a.right = p.causal ? 0 : limit(p.window_right);
  a.dropout_threshold = static_cast<std::int32_t>(std::ceil(p.dropout_p * 0x1p24));
  a.kept_scale = 1 / (1 - p.dropout_p);
  if (p.cu_seqlens_q != nullptr) {
    for (AttentionOperand* operand : {&a.params.q, &a.params.k, &a.params.v, &a.params.o, &a.params.dout,
                                      &a.params.dq, &a.params.dk, &a.params.dv}) {
      operand->batch_stride = 0;
    }
  }
  return a;
}

}  // namespace

std::int64_t attention_forward_workspace(const AttentionParams&) { return 0; }
std::int64_t attention_backward_workspace(const AttentionParams&) { return 0; }

void attention_forward(const AttentionParams& p) {
  check(p);
  launch_simt_forward(arguments_of(p));
}

void attention_backward(const AttentionParams& p) {
  check(p);
  launch_simt_backward(arguments_of(p));
}

}  // namespace ergon::kernels::cuda
