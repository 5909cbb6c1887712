#pragma once

// Attention's forward by cuDNN 9, for comparison. Its library is loaded by the first one.

#include <cstdint>

#include "kernels/attention.h"

namespace ergon::kernels::cuda {

// As kernels/attention.h says, of bf16 and f16 operands in rows of 16-byte chunks, by cuDNN's first choice of
// a kernel. False, and nothing done, where it has none, and for head_dim above 128, causal with other numbers
// of queries than of keys or before cuDNN 9.21, windows, packed batches, caches, bias, ALiBi, softcap and
// dropout. Error if the library is missing or older than 9.13, and in a build without such a cudnn.h.
// params.workspace: cudnn_attention_workspace() bytes.
bool cudnn_attention_forward(const AttentionParams& params);
std::int64_t cudnn_attention_workspace(const AttentionParams& params);

}  // namespace ergon::kernels::cuda
