#pragma once

// What the kernels of this folder are launched with.

#include <cstdint>

#include "core/dtype.h"
#include "kernels/gemm.h"

namespace ergon::kernels::cuda::gemm_detail {

// a or b as lines of elements `unit` apart (1 where the layout allows), `line_stride` from one to the next.
// Lines run along K ("depth contiguous"), or along the rows of A or the columns of B.
struct Source {
  const void* data;
  std::int64_t line_stride, unit, outer_stride, inner_stride;  // in elements
  // 16 where unit is 1 and every line starts at a multiple of 16 bytes; 4 where that holds for words of 4
  // bytes, or elements have 4 bytes; else 0.
  int bytes_at_a_time;
};

// From sums to C (GemmParams says what is what). c, pre_activation and residual have one dtype and layout.
template <class Acc>
struct Epilogue {
  void* c = nullptr;
  void* pre_activation = nullptr;
  const void* residual = nullptr;
  const void* bias = nullptr;
  std::int64_t row_stride = 0, col_stride = 1, outer_stride = 0, inner_stride = 0;  // in elements
  Acc alpha = 1, beta = 0;
  DType dtype = DType::f32, bias_dtype = DType::f32;
  Activation activation = Activation::none;
  bool activation_backward = false;
  bool vectors = false;  // rows are contiguous, and four elements from a column divisible by 4 on are aligned
};

struct TensorCoreArguments {
  Source a, b;
  Epilogue<float> epilogue;
  int M, N, K;
  int tiles_m, tiles_n, batch_inner;
  int tiles;            // of all matrices
  int splits;           // of K; split s of a tile's sum goes to c + s * split_stride
  int steps_per_split;  // K-steps
  std::int64_t split_stride;
};

// c = what the epilogue makes of the sum over s of partial[s], each (batch_outer * batch_inner, M,
// row_stride).
struct ReduceArguments {
  const float* partial;
  Epilogue<float> epilogue;
  std::int64_t M, N, batch_outer, batch_inner;
  std::int64_t row_stride, split_stride;
  int splits;
};

}  // namespace ergon::kernels::cuda::gemm_detail
