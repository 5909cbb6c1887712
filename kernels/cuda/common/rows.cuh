#pragma once

// Matrices of rows (kernels/row_matrix.h) as kernels see them.

#include <initializer_list>

#include "core/cuda/vector.cuh"
#include "kernels/row_matrix.h"

namespace ergon::device {

// A row matrix of elements T. `stride` in elements.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  Rows() = default;
  __host__ __device__ explicit Rows(const kernels::RowMatrix& matrix)
      : data(static_cast<T*>(matrix.data)), stride(matrix.stride) {}
  __device__ __forceinline__ T* row(std::int64_t r) const { return data + r * stride; }
  __device__ __forceinline__ explicit operator bool() const { return data != nullptr; }
};

// On the host: do rows of `cols` elements of `element_size` bytes split into whole aligned 16-byte vectors in
// all of the matrices? Absent ones do not count.
inline bool rows_in_vectors(std::int64_t cols, std::int64_t element_size,
                            std::initializer_list<kernels::RowMatrix> matrices) {
  const std::int64_t width = 16 / element_size;
  bool fits = cols % width == 0;
  for (const kernels::RowMatrix& m : matrices) {
    fits &= m.data == nullptr || (m.stride % width == 0 && aligned_to(m.data, 16));
  }
  return fits;
}

}  // namespace ergon::device
