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
// workspace        embedding_backward_workspace(vocab, count) int64, backward only
//
// dweight is = (not +=), summed in fp32 (f64 for f64) and rounded once. Deterministic, the same bits for any
// number of threads and on either device. No alignment is required.
// Bytes: forward 2 * count * cols; backward (count + vocab) * cols, elements.
struct EmbeddingParams {
  std::int64_t vocab = 0;
  std::int64_t cols = 0;
  std::int64_t count = 0;
  const void* indices = nullptr;
  DType index_dtype = DType::i64;
};

constexpr std::int64_t embedding_backward_workspace(std::int64_t vocab, std::int64_t count) {
  // CUDA: two copies of count sort entries, 128 for each of its tiles of 2048, and starts of the rows.
  return vocab + 2 * count + 128 * ((count + 2047) / 2048) + 1;
}

namespace cpu {

void embedding_forward(const EmbeddingParams& params, const RowMatrix& weight, const RowMatrix& y);
void embedding_backward(const EmbeddingParams& params, const RowMatrix& dout, const RowMatrix& dweight,
                        std::int64_t* workspace);

}  // namespace cpu

// On the device indices are not checked before: the first one outside of [0, vocab) becomes an index fault
// (core/cuda/index_fault.h), reads as a row of zeros and adds to no gradient. Rows move in 16-byte vectors
// where pointers, strides and row sizes are multiples of 16 bytes; a warp moves one row. vocab and count are
// below 2^31. Bytes: besides the CPU's, the indices once; backward: about 16 * count * ceil(bits(vocab) / 8)
// for the sort by index.
namespace cuda {

void embedding_forward(const EmbeddingParams& params, const RowMatrix& weight, const RowMatrix& y);
void embedding_backward(const EmbeddingParams& params, const RowMatrix& dout, const RowMatrix& dweight,
                        std::int64_t* workspace);

}  // namespace cuda
}  // namespace ergon::kernels
