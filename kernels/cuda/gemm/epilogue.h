#pragma once

#include "kernels/cuda/gemm/arguments.h"

namespace ergon::kernels::cuda::gemm_detail {

// What GemmParams say happens to the sums.
template <class Acc>
Epilogue<Acc> epilogue_of(const GemmParams& p) {
  const std::int64_t four = 4 * size_of(p.c.dtype);
  const auto aligned = [&](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(four) == 0;
  };
  const auto whole = [](std::int64_t count, std::int64_t stride) { return count == 1 || stride % 4 == 0; };
  return {.c = p.c.data,
          .pre_activation = p.pre_activation,
          .residual = p.residual,
          .bias = p.bias,
          .row_stride = p.c.row_stride,
          .col_stride = p.c.col_stride,
          .outer_stride = p.c.outer_stride,
          .inner_stride = p.c.inner_stride,
          .alpha = static_cast<Acc>(p.alpha),
          .beta = static_cast<Acc>(p.beta),
          .dtype = p.c.dtype,
          .bias_dtype = p.bias_dtype,
          .activation = p.activation,
          .activation_backward = p.activation_backward,
          .vectors = p.c.col_stride == 1 && aligned(p.c.data) && aligned(p.pre_activation)
                     && aligned(p.residual) && whole(p.M, p.c.row_stride)
                     && whole(p.batch_outer, p.c.outer_stride) && whole(p.batch_inner, p.c.inner_stride)};
}

}  // namespace ergon::kernels::cuda::gemm_detail
