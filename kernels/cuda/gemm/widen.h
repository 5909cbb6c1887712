#pragma once

// Operands of two dtypes: as f32, in the workspace.

#include <cstdint>

#include "kernels/gemm.h"

namespace ergon::kernels::cuda::gemm_detail {

// Are a and b of two dtypes among f32, bf16 and f16?
bool has_two_dtypes(const GemmParams& params);

// Bytes of workspace that `widened` takes from its beginning.
std::int64_t widened_bytes(const GemmParams& params);

// The same product of f32 operands: those that are not f32 lie converted at the beginning of the workspace,
// in the order of their memory and each matrix once, where `launch_widen` puts them. The workspace left is
// behind them.
GemmParams widened(const GemmParams& params);
void launch_widen(const GemmParams& params);

}  // namespace ergon::kernels::cuda::gemm_detail
