#pragma once

// The forward of few queries and many keys, as in decoding.

#include "kernels/attention.h"

namespace ergon::kernels::cpu::attention_detail {

// Is a problem of this kind?
bool is_decoding(const AttentionParams& params);
std::int64_t decoding_workspace(const AttentionParams& params);
void decode(const AttentionParams& params);

}  // namespace ergon::kernels::cpu::attention_detail
