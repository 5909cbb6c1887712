#pragma once

// Rows of a table by index.

#include <cstdint>

#include "kernels/row_matrix.h"

namespace ergon::kernels {

// Forward:  y[i] = weight[indices[i]]
// Backward: dweight[v] = sum over i with indices[i] == v of dout[i], in the order of i; 0 without any
//
// weight, dweight  (vocab, cols)   f32 | bf16 | f16 | f64
// indices          (count)         contiguous i32 or i64, each in [0, vocab)
// y, dout          (count, cols)   dtype of weight and dweight
// workspace        (vocab + count) int64, backward only
//
// dweight is = (not +=), summed in fp32 (f64 for f64) and rounded once. Deterministic, the same bits for any
// number of threads: a thread owns a range of columns. No alignment is required.
// Bytes: forward 2 * count * cols; backward (count + vocab) * cols, elements.
struct EmbeddingParams {
  std::int64_t vocab = 0;
  std::int64_t cols = 0;
  std::int64_t count = 0;
  const void* indices = nullptr;
  DType index_dtype = DType::i64;
};

namespace cpu {

void embedding_forward(const EmbeddingParams& params, const RowMatrix& weight, const RowMatrix& y);
void embedding_backward(const EmbeddingParams& params, const RowMatrix& dout, const RowMatrix& dweight,
                        std::int64_t* workspace);

}  // namespace cpu
}  // namespace ergon::kernels
