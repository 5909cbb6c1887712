#pragma once

// Matrix product with strided operands, two batch dimensions and a fused epilogue.

#include <cstdint>
#include <string>

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

// C[o, n] = act(alpha * A[o, n] B[o, n] + beta * C[o, n] + bias) + residual, or with activation_backward
// C[o, n] = (alpha * A[o, n] B[o, n] + beta * C[o, n] + bias) * act'(pre_activation) + residual
//
// a     (batch_outer, batch_inner, M, K)  f32|bf16|f16, or f64 with all of a, b, c, bias f64
// b     (batch_outer, batch_inner, K, N)  its own dtype from the same set
// c     (batch_outer, batch_inner, M, N)  its own dtype from the same set; elements must not share memory
// with each
//                                         other, nor with a or b
// bias  (N)                               contiguous; null: none
// pre_activation  like c, same dtype and strides: the argument of act, rounded to c's dtype; null: not
// stored.
//                 With activation_backward it is read instead.
// residual        like c, same dtype and strides; may be c itself; null: none
//
// Accumulates in fp32 (f64 for f64) and rounds once to c's dtype, whatever K; bf16 and f16 are converted
// block by block, unless the processor multiplies them itself. beta == 0 does not read c. K == 0 gives
// act(beta * C + bias); M, N or a batch of 0 does nothing. Deterministic: the same bits for the same problem
// on the same machine, whatever the number of threads. Fast when c has unit column stride and a, b each have
// one unit stride; every other layout works, more slowly. Flops 2 M N K, bytes at least those of a, b and c
// once (c twice with beta != 0), each per batch entry.
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
  bool activation_backward = false;
  const void* residual = nullptr;
  bool allow_tf32 = false;    // cuda: f32 products may cut a and b off to tf32 (10 bits of mantissa)
  void* workspace = nullptr;  // cuda: gemm_workspace() bytes, aligned to 16; null: K is not split
};

namespace cpu {

// Two bf16 operands go through AVX-512 BF16 where the library is built for it, at twice the rate of fp32:
// products are exact, sums are rounded as in fp32, but subnormal operands and sums (below 2^-126) count as 0.
//
// Runs on all of the caller's OpenMP threads, or on the calling thread alone within a parallel region and for
// small problems. Keeps packing buffers per thread (a few MB) between calls. Throws Error for dtypes it does
// not know.
void gemm(const GemmParams& params);

}  // namespace cpu

namespace cuda {

// On tensor cores where a and b are bf16, f16 or f32 (strides of up to 2^24 bytes from line to line): f32 in
// three passes of tf32, each product within 2^-19, or with allow_tf32 in one, within 2^-9; two different
// dtypes as f32, converted into the workspace. f64, and two dtypes without workspace, take a plain kernel.
// 16-byte copies where a and b have a unit stride and pointers and other strides are multiples of 16 bytes;
// rows of C in vectors of four elements where they are aligned for it. Bytes read of a and b: for tiles of BM
// x BN, ceil(M / BM) ceil(N / BN) (BM + BN) K elements. M, N, K below 2^31. Asynchronous on the current
// stream; docs/gemm.md explains the kernels.
void gemm(const GemmParams& params);

// Bytes of workspace with which this product, whose workspace is not looked at, runs best; often 0.
std::int64_t gemm_workspace(const GemmParams& params);

// The kernel that runs this product, and why it was chosen, in one line.
std::string gemm_plan(const GemmParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
