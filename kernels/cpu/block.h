#pragma once

// Blocks: pieces of strided operands of any dtype, brought into dense rows of the type that a kernel computes
// in (float, double or int64_t), or of halves where all operands are of one half dtype, for vector_loop.h to
// convert. Kernels written against blocks have one loop body for all dtypes and strides, and read operands in
// place where these already are what the loop wants.

#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels::cpu {

// Elements in a block that goes through a buffer: 4 KB of float, so that several stay in the L1 cache.
constexpr std::int64_t kBlockSize = 1024;

// rows x cols elements; strides in elements.
struct Block {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 1;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;

  std::int64_t size() const { return rows * cols; }
  bool is_dense() const { return col_stride == 1 && (rows == 1 || row_stride == cols); }
};

// The elements of `block` as T, dense and row-major: in place if they already lie so, else in `buffer`
// (block.size() elements). bf16 and f16 as T are for blocks of that dtype.
template <class T>
const T* load(const Block& block, T* buffer);

// Writes dense row-major values to `block`, rounded to its dtype. The values may be the block's own memory.
template <class T>
void store(const T* values, const Block& block);

}  // namespace ergon::kernels::cpu
