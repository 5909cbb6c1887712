#pragma once

// Loops over several tensors of one shape on the CPU's cores.

#include <array>
#include <cstdint>

#include "core/merge_dims.h"
#include "core/parallel.h"

namespace ergon {

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
