#pragma once

// Softmax and log-softmax along one dimension, and their gradients.

#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

enum class SoftmaxForm { softmax, log_softmax };

struct SoftmaxShape {
  std::int64_t outer = 1;
  std::int64_t length = 1;  // along the dimension
  std::int64_t inner = 1;   // 1: the last dimension, the fast case
};

namespace cpu {

// y[o,k,i] = exp(x[o,k,i] - m[o,i]) / s[o,i], or x[o,k,i] - m[o,i] - log(s[o,i]), with m the maximum over k
// and s = sum_k exp(x[o,k,i] - m[o,i]). x, y  (outer, length, inner)  contiguous, one dtype: f32, bf16, f16
// or f64. y may be x. Statistics and arithmetic in fp32 (fp64 for f64); sums as a tree along the last
// dimension, in runs of 32 along another. A NaN, a +inf or nothing but -inf in a row makes the whole row NaN.
// Deterministic. Error in f32, in units of 2^-24: y (|x - m| + log(length) + 40 + log2(length)); of the
// logarithm 2 |x - m| + 3 log(length) + 40 + log2(length). Along another dimension length / 32 more. In bf16
// and f16, before the result is rounded, 2^-16 y and 2^-17 more: half_math.h's exponentials and their sum.
// Bytes: 2 * numel * size; x is read three times, from cache where a row fits.
void softmax(SoftmaxForm form, DType dtype, const void* x, void* y, const SoftmaxShape& shape);

// dx = y (dy - sum_k dy y), or dy - exp(y) sum_k dy for the logarithm; y is the result of the forward.
// dx (=), y, dy: as above; dx may be dy.
void softmax_backward(SoftmaxForm form, DType dtype, const void* y, const void* dy, void* dx,
                      const SoftmaxShape& shape);

}  // namespace cpu

// As above, but that sums are of length / 512 terms in a thread one after the other (length / 8 along another
// dimension), rescaled whenever the thread's maximum rises, then a tree. One read and one write of each
// element up to a length of 2,048 16-byte vectors, or of 2,048 elements where rows are not in vectors, or of
// 32 along another dimension; what lies beyond is read twice. Along another dimension 32 columns are worked
// on side by side: full sectors if inner is a multiple of 32.
namespace cuda {

void softmax(SoftmaxForm form, DType dtype, const void* x, void* y, const SoftmaxShape& shape);
void softmax_backward(SoftmaxForm form, DType dtype, const void* y, const void* dy, void* dx,
                      const SoftmaxShape& shape);

}  // namespace cuda
}  // namespace ergon::kernels
