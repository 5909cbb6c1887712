#pragma once

// Rows of a RowMatrix of any dtype as dense rows of the type T that a kernel wants: in place where they
// already are, else through a buffer. One loop body for all dtypes. Rows of halves are always in place.

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/half.h"
#include "kernels/cpu/block.h"
#include "kernels/row_matrix.h"

namespace ergon::kernels::cpu {

// Elements of work that make waking another thread pay.
constexpr std::int64_t kRowGrain = 16384;

// The fewest rows of `cols` elements to give a thread, for parallel_for.
inline std::int64_t row_grain(std::int64_t cols, std::int64_t elements = kRowGrain) {
  return std::max<std::int64_t>(elements / std::max<std::int64_t>(cols, 1), 1);
}

// Columns [col, col + cols) of row r.
inline Block block_of(const RowMatrix& matrix, std::int64_t r, std::int64_t col, std::int64_t cols) {
  char* data = static_cast<char*>(matrix.data) + (r * matrix.stride + col) * size_of(matrix.dtype);
  return {.data = data, .dtype = matrix.dtype, .cols = cols};
}

// Calls f(TypeTag<T>, TypeTag<S>): T is the type to compute in, S the one that the rows of all operands which
// are present are stored in, or T if they differ.
template <class F>
void dispatch_rows(std::initializer_list<RowMatrix> operands, F f) {
  const DType dtype = operands.begin()->dtype;
  const bool alike = std::ranges::all_of(
      operands, [&](const RowMatrix& matrix) { return matrix.data == nullptr || matrix.dtype == dtype; });
  if (dtype == DType::f64) return f(TypeTag<double>{}, TypeTag<double>{});
  if (alike && dtype == DType::bf16) return f(TypeTag<float>{}, TypeTag<bf16>{});
  if (alike && dtype == DType::f16) return f(TypeTag<float>{}, TypeTag<f16>{});
  return f(TypeTag<float>{}, TypeTag<float>{});
}

// Reads rows. An absent operand reads as rows of `missing`.
template <class T>
class RowReader {
 public:
  RowReader(const RowMatrix& matrix, std::int64_t cols, T missing = T(0)) : matrix_(matrix), cols_(cols) {
    if (matrix.data == nullptr || matrix.dtype != dtype_of<T>()) {
      buffer_.assign(static_cast<std::size_t>(cols), missing);
    }
  }
  // Valid until the next call.
  const T* row(std::int64_t r) {
    if (buffer_.empty()) return static_cast<const T*>(matrix_.data) + r * matrix_.stride;
    if constexpr (!is_half(dtype_of<T>())) {
      if (matrix_.data != nullptr) return load(block_of(matrix_, r, 0, cols_), buffer_.data());
    }
    return buffer_.data();
  }

 private:
  RowMatrix matrix_;
  std::int64_t cols_;
  std::vector<T> buffer_;
};

// Writes rows. What is written to an absent operand is dropped.
template <class T>
class RowWriter {
 public:
  RowWriter(const RowMatrix& matrix, std::int64_t cols) : matrix_(matrix), cols_(cols) {
    if (matrix.data == nullptr || matrix.dtype != dtype_of<T>()) {
      buffer_.resize(static_cast<std::size_t>(cols));
    }
  }
  // Where to put row r; follow with finish(r).
  T* row(std::int64_t r) {
    return buffer_.empty() ? static_cast<T*>(matrix_.data) + r * matrix_.stride : buffer_.data();
  }
  void finish(std::int64_t r) {
    if constexpr (!is_half(dtype_of<T>())) {
      if (!buffer_.empty() && matrix_.data != nullptr) store(buffer_.data(), block_of(matrix_, r, 0, cols_));
    }
  }

 private:
  RowMatrix matrix_;
  std::int64_t cols_;
  std::vector<T> buffer_;
};

}  // namespace ergon::kernels::cpu
