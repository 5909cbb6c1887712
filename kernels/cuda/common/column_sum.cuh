#pragma once

// Sums over the rows of a matrix in two steps: each block leaves a partial sum of its rows for each column,
// then the partial sums are added up. Deterministic: fixed trees.

#include "core/cuda/vector.cuh"
#include "kernels/row_matrix.h"

namespace ergon::device {

// The first step's end: thread (x, y) of the block has sums for the kWidth columns from x * kWidth on.
template <class Acc, int kWidth>
struct BlockColumns {
  // sums[c] = sum over y, in order, for c < min(blockDim.x * kWidth, cols). All threads of the block take
  // part.
  __device__ __forceinline__ static void sum(const Vector<Acc, kWidth>& own, Acc* sums, int cols,
                                             Acc* scratch) {
    const int threads = blockDim.x * blockDim.y, self = threadIdx.y * blockDim.x + threadIdx.x;
    const int line = threads + kPadding;
    __syncthreads();  // the scratch may still be read
#pragma unroll
    for (int i = 0; i < kWidth; ++i) scratch[i * line + self] = own[i];
    __syncthreads();
    for (int c = self; c < min(static_cast<int>(blockDim.x) * kWidth, cols); c += threads) {
      const Acc* column = scratch + c % kWidth * line + c / kWidth;
      Acc sum = 0;
      for (int y = 0; y < blockDim.y; ++y) sum += column[y * blockDim.x];
      sums[c] = sum;
    }
  }
  // Elements of shared memory that it needs.
  static constexpr int scratch_size(int threads) { return kWidth * (threads + kPadding); }

 private:
  // Neighbouring columns come from different lines, which this puts into different banks.
  static constexpr int kPadding = 128 / static_cast<int>(sizeof(Acc)) / kWidth;
};

}  // namespace ergon::device

namespace ergon::kernels::cuda {

// The second step: out[c] = sum over k of partials[k * stride + c], k < count, c < cols.
//   partials  f32, or f64 where out is f64
//   out       (cols) f32 | bf16 | f16 | f64
// Bytes: count * cols of partials and cols of out.
void sum_partials(const void* partials, std::int64_t count, std::int64_t stride, std::int64_t cols,
                  const RowMatrix& out);

}  // namespace ergon::kernels::cuda
