#pragma once

// Attention by cuDNN 9, for comparison. Its library is loaded by the first one.

#include <cstdint>

#include "kernels/attention.h"

namespace ergon::kernels::cuda {

// As kernels/attention.h says, of bf16 and f16 operands in rows of 16-byte chunks, by cuDNN's first choice of
// a kernel. False, and nothing done, where it has none, and for head_dim above 128, causal with other numbers
// of queries than of keys, windows, packed batches, caches, bias, ALiBi, softcap and dropout; a forward that
// is causal before cuDNN 9.21; a backward before 9.15.1 and of one query and one key. Error if the library is
// missing or older than 9.13.1, and in a build without such a cudnn.h.
//
// params.workspace: the ..._workspace() bytes. The backward's are, beside 4 for each row of q, 2 for each
// score (queries and keys rounded up to 64 or 128) where it is deterministic, else 4 to 8 for each element of
// q; and with groups of heads 4 for each element of k, counted with as many heads as q has, whose gradients
// cuDNN rounds to the dtype before it adds them up.
bool cudnn_attention_forward(const AttentionParams& params);
bool cudnn_attention_backward(const AttentionParams& params);
std::int64_t cudnn_attention_forward_workspace(const AttentionParams& params);
std::int64_t cudnn_attention_backward_workspace(const AttentionParams& params);

}  // namespace ergon::kernels::cuda
