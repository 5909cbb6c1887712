#pragma once

// Matrix product with strided operands, two batch dimensions and a fused epilogue.

#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

enum class Activation : std::uint8_t { none, relu, gelu_tanh, gelu_erf, silu };

// One operand. Element (i, j) of the matrix of batch (o, n) lies at
//   data[o * outer_stride + n * inner_stride + i * row_stride + j * col_stride],
// strides in elements. A transpose swaps row_stride and col_stride; a batch stride of 0 repeats one matrix.
template <class Pointer>
struct GemmOperand {
  Pointer data = nullptr;
  DType dtype = DType::f32;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;
  std::int64_t outer_stride = 0;
  std::int64_t inner_stride = 0;
};

// C[o, n] = act(alpha * A[o, n] B[o, n] + beta * C[o, n] + bias)
//
// a     (batch_outer, batch_inner, M, K)  f32|bf16|f16, or f64 with all of a, b, c, bias f64
// b     (batch_outer, batch_inner, K, N)  its own dtype from the same set
// c     (batch_outer, batch_inner, M, N)  its own dtype from the same set; elements must not share memory
// with each
//                                         other, nor with a or b
// bias  (N)                               contiguous; null: none
// pre_activation  like c, same dtype and strides: the argument of act, rounded to c's dtype; null: not stored
//
// Accumulates in fp32 (f64 for f64) and rounds once to c's dtype, whatever K; bf16 and f16 are converted
// block by block. beta == 0 does not read c. K == 0 gives act(beta * C + bias); M, N or a batch of 0 does
// nothing. Deterministic: the same bits for the same problem on the same machine, whatever the number of
// threads. Fast when c has unit column stride and a, b each have one unit stride; every other layout works,
// more slowly. Flops 2 M N K, bytes at least those of a, b and c once (c twice with beta != 0), each per
// batch entry.
struct GemmParams {
  std::int64_t M = 0;
  std::int64_t N = 0;
  std::int64_t K = 0;
  std::int64_t batch_outer = 1;
  std::int64_t batch_inner = 1;
  GemmOperand<const void*> a = {};
  GemmOperand<const void*> b = {};
  GemmOperand<void*> c = {};
  double alpha = 1;
  double beta = 0;
  const void* bias = nullptr;
  DType bias_dtype = DType::f32;
  Activation activation = Activation::none;
  void* pre_activation = nullptr;
};

namespace cpu {

// Runs on all of the caller's OpenMP threads, or on the calling thread alone within a parallel region and for
// small problems. Keeps packing buffers per thread (a few MB) between calls. Throws Error for dtypes it does
// not know.
void gemm(const GemmParams& params);

}  // namespace cpu
}  // namespace ergon::kernels
