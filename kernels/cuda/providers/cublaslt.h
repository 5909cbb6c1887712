#pragma once

// Matrix products by cuBLASLt, for comparison. Its library is loaded by the first one.

#include <cstdint>

#include "kernels/gemm.h"

namespace ergon::kernels::cuda {

// Computes the product as kernels/gemm.h says, with bias, ReLU, GELU (tanh) and its derivative, beta and an
// added residual in the same call. False, and nothing done, for what cuBLASLt has no call or no algorithm
// for: mixed dtypes of a and b, operands without a unit stride, other activations, several additions to the
// sum. Uses cublaslt_workspace() bytes of params.workspace where that is not null. Error if the library is
// missing.
bool cublaslt_gemm(const GemmParams& params);

std::int64_t cublaslt_workspace();

}  // namespace ergon::kernels::cuda
