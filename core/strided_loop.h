#pragma once

// Loops over several tensors of one shape and different strides (0 to broadcast), with dimensions merged
// where that is possible.

#include <array>
#include <cstdint>

#include "core/dims.h"
#include "core/parallel.h"

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

// Calls f(offsets, length) for pieces of rows: offsets[k] is the element offset of the piece in operand k,
// and its elements are loop.strides[k].back() apart. Pieces of different rows, or of one long row, run in
// parallel, unless `serial`.
template <int N, class F>
void for_each_row(const StridedLoop<N>& loop, F&& f, bool serial = false) {
  constexpr std::int64_t kGrain = 16384;  // elements a thread is worth waking for
  const std::int64_t length = loop.row_length();
  const std::int64_t rows = loop.rows();
  if (length == 0 || rows == 0) return;
  if (rows == 1) {
    const auto run = [&](std::int64_t begin, std::int64_t end) {
      std::array<std::int64_t, N> offsets;
      for (int k = 0; k < N; ++k) offsets[k] = begin * loop.strides[k].back();
      f(offsets, end - begin);
    };
    serial ? run(0, length) : parallel_for(0, length, kGrain, run);
    return;
  }
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    const int outer = loop.shape.size() - 1;
    Dims index = Dims::filled(outer, 0);
    std::array<std::int64_t, N> offsets{};
    std::int64_t remaining = begin;
    for (int dim = outer - 1; dim >= 0; --dim) {
      index[dim] = remaining % loop.shape[dim];
      remaining /= loop.shape[dim];
      for (int k = 0; k < N; ++k) offsets[k] += index[dim] * loop.strides[k][dim];
    }
    for (std::int64_t row = begin; row < end; ++row) {
      f(offsets, length);
      for (int dim = outer - 1; dim >= 0; --dim) {
        for (int k = 0; k < N; ++k) offsets[k] += loop.strides[k][dim];
        if (++index[dim] < loop.shape[dim]) break;
        for (int k = 0; k < N; ++k) offsets[k] -= loop.shape[dim] * loop.strides[k][dim];
        index[dim] = 0;
      }
    }
  };
  serial ? run(0, rows) : parallel_for(0, rows, std::max<std::int64_t>(kGrain / length, 1), run);
}

}  // namespace ergon
