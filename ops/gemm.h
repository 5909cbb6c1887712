#pragma once

#include "core/device.h"
#include "kernels/gemm.h"

namespace ergon::ops::detail {

// kernels::cpu::gemm or kernels::cuda::gemm with the workspace it wants, after where the operands lie. f32
// products take the precision that allow_tf32() says.
void gemm(const Device& device, kernels::GemmParams params);

}  // namespace ergon::ops::detail
