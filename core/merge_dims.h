#pragma once

// Several tensors of one shape and different strides (0 to broadcast), with dimensions merged where that is
// possible.

#include <array>
#include <cstdint>

#include "core/dims.h"

namespace ergon {

// A shape with one set of strides for each of N operands, dimensions merged; at least one dimension.
template <int N>
struct StridedLoop {
  Shape shape;
  std::array<Strides, N> strides;

  std::int64_t row_length() const { return shape.back(); }
  std::int64_t rows() const {
    std::int64_t count = 1;
    for (int i = 0; i + 1 < shape.size(); ++i) count *= shape[i];
    return count;
  }
};

template <int N>
StridedLoop<N> merge_dims(const Shape& shape, const std::array<Strides, N>& strides) {
  StridedLoop<N> loop;
  const auto mergeable = [&](int dim) {  // dimension `dim` continues the last one of `loop`
    for (int k = 0; k < N; ++k) {
      if (loop.strides[k].back() != strides[k][dim] * shape[dim]) return false;
    }
    return true;
  };
  for (int dim = 0; dim < shape.size(); ++dim) {
    if (shape[dim] == 1) continue;
    if (!loop.shape.empty() && mergeable(dim)) {
      loop.shape.back() *= shape[dim];
      for (int k = 0; k < N; ++k) loop.strides[k].back() = strides[k][dim];
    } else {
      loop.shape.push_back(shape[dim]);
      for (int k = 0; k < N; ++k) loop.strides[k].push_back(strides[k][dim]);
    }
  }
  if (loop.shape.empty()) {
    loop.shape.push_back(1);
    for (int k = 0; k < N; ++k) loop.strides[k].push_back(1);
  }
  return loop;
}

}  // namespace ergon
