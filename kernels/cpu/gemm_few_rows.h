#pragma once

// Products of few rows (a linear layer while generating text, one token at a time), which read B once, in the
// order of its memory, and copy nothing: dot products where its columns are contiguous, sums of scaled rows
// where its rows are.

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "kernels/cpu/gemm_epilogue.h"
#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_problem.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu::gemm_detail {

inline constexpr int kDotRows = 4;  // more rows make the packed product as fast as memory
inline constexpr int kDotColumns =
    4;  // streams of B side by side: as many sums as hide the latency of an FMA

// out[i * kTileN<T> + j] = sum_k a[i * lda + k] * b[j * ldb + k] for i < kRows, j < kDotColumns; columns
// from `columns` on repeat the last.
template <int kRows, class T, class S>
void dot(const T* a, int64_t lda, const S* b, int64_t ldb, int columns, int64_t K, T* out) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[kRows][kDotColumns] = {};
  const auto add = [&](const auto& load_at, int64_t k) __attribute__((always_inline)) {
    Vec<T> av[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) av[i] = load_at(a + i * lda + k);
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) {
      const S* column = b + std::min(j, columns - 1) * ldb + k;
      const Vec<T> bv = load_at(column);
      __builtin_prefetch(reinterpret_cast<const char*>(column) + 1024);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sum[i][j] += av[i] * bv;
    }
  };
  int64_t k = 0;
  for (; k + L <= K; k += L) add([](const auto* x) { return load(x); }, k);
  if (k < K) add([&](const auto* x) { return load_partial<T>(x, K - k); }, k);
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) {
      alignas(kVectorBytes) T lanes[L];
      store(lanes, sum[i][j]);
      for (int half = L / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
      }
      out[i * kTileN<T> + j] = lanes[0];
    }
  }
}

// Can `multiply_by_dots` do it, and is it the better way?
template <class T>
bool suits_dots(const Problem<T>& p) {
  return p.M <= kDotRows && p.N > 1 && p.K >= kLanes<T> && p.b.row == 1 && p.b.col != 1;
}

// The rows of A in T, contiguous along K: in place, or in `workspace` (M * K elements).
template <class T>
std::pair<const T*, int64_t> rows_of_a(const Problem<T>& p, T* workspace) {
  if (p.a.col == 1 && p.a.dtype == dtype_of<T>()) return {static_cast<const T*>(p.a.data), p.a.row};
  with_type<T>(p.a.dtype, [&](auto tag) {
    const auto* source = static_cast<const typename decltype(tag)::type*>(p.a.data);
    for (int64_t i = 0; i < p.M; ++i) {
      for (int64_t k = 0; k < p.K; ++k)
        workspace[i * p.K + k] = static_cast<T>(source[i * p.a.row + k * p.a.col]);
    }
  });
  return {workspace, p.K};
}

// Columns [j0, j1) of C. `workspace` holds M * K elements.
template <class T>
void multiply_by_dots(const Problem<T>& p, T* workspace, int64_t j0, int64_t j1) {
  const int rows = static_cast<int>(p.M);
  const auto [a, lda] = rows_of_a(p, workspace);
  T sums[kDotRows * kTileN<T>] = {};
  with_type<T>(p.b.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    constexpr std::array kDots = {dot<1, T, S>, dot<2, T, S>, dot<3, T, S>, dot<4, T, S>};
    const auto dots = kDots[static_cast<std::size_t>(rows - 1)];
    for (int64_t j = j0; j < j1; j += kTileN<T>) {
      const int columns = static_cast<int>(std::min<int64_t>(kTileN<T>, j1 - j));
      for (int first = 0; first < columns; first += kDotColumns) {
        dots(a, lda, static_cast<const S*>(p.b.data) + (j + first) * p.b.col, p.b.col, columns - first, p.K,
             sums + first);
      }
      for (T& sum : sums) sum *= p.alpha;
      finish_tile(p, {sums, kTileN<T>, rows, columns}, 0, j, p.beta, true);
    }
  });
}

// The same for a B whose rows are contiguous: sums of kScaledColumns columns stay in the first-level cache
// while some rows of B at a time, each times an element of A, are added to them.

inline constexpr int kScaledColumns = 1024;
inline constexpr int kScaledRows = 8;  // of B: sums are loaded and stored once for all of them

// sums[i * kScaledColumns + j] += sum over k < kDepthRows of a[i * lda + k] * b[k * ldb + j], in the order of
// k
template <int kRows, int kDepthRows, class T, class S>
void add_scaled_rows(const T* a, int64_t lda, const S* b, int64_t ldb, int64_t columns, T* sums) {
  for_each_vector<T>(
      columns, [&](int64_t j, auto at) __attribute__((always_inline)) {
        Vec<T> sum[kRows];
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) sum[i] = at.load(sums + i * kScaledColumns + j);
#pragma GCC unroll 8
        for (int k = 0; k < kDepthRows; ++k) {
          const Vec<T> row = at.load(b + k * ldb + j);
#pragma GCC unroll 4
          for (int i = 0; i < kRows; ++i) sum[i] += a[i * lda + k] * row;
        }
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) at.store(sums + i * kScaledColumns + j, sum[i]);
      });
}

template <class T>
bool suits_scaled_rows(const Problem<T>& p) {
  return p.M <= kDotRows && p.N >= kLanes<T> && p.b.col == 1;
}

// Columns [j0, j1) of C. `workspace` holds M * K elements.
template <class T>
void multiply_by_scaled_rows(const Problem<T>& p, T* workspace, int64_t j0, int64_t j1) {
  const int rows = static_cast<int>(p.M);
  const auto [a, lda] = rows_of_a(p, workspace);
  alignas(kVectorBytes) T sums[kDotRows * kScaledColumns];
  with_type<T>(p.b.dtype, [&, a = a, lda = lda](auto tag) {
    using S = typename decltype(tag)::type;
    constexpr std::array kEight = {
        add_scaled_rows<1, kScaledRows, T, S>, add_scaled_rows<2, kScaledRows, T, S>,
        add_scaled_rows<3, kScaledRows, T, S>, add_scaled_rows<4, kScaledRows, T, S>};
    constexpr std::array kOne = {add_scaled_rows<1, 1, T, S>, add_scaled_rows<2, 1, T, S>,
                                 add_scaled_rows<3, 1, T, S>, add_scaled_rows<4, 1, T, S>};
    const auto which = static_cast<std::size_t>(rows - 1);
    for (int64_t j = j0; j < j1; j += kScaledColumns) {
      const int64_t columns = std::min<int64_t>(kScaledColumns, j1 - j);
      const S* b = static_cast<const S*>(p.b.data) + j;
      std::fill_n(sums, rows * kScaledColumns, T(0));
      int64_t k = 0;
      for (; k + kScaledRows <= p.K; k += kScaledRows)
        kEight[which](a + k, lda, b + k * p.b.row, p.b.row, columns, sums);
      for (; k < p.K; ++k) kOne[which](a + k, lda, b + k * p.b.row, p.b.row, columns, sums);
      for (int64_t at = 0; at < rows * kScaledColumns; ++at) sums[at] *= p.alpha;
      for (int64_t first = 0; first < columns; first += kTileN<T>) {
        const int width = static_cast<int>(std::min<int64_t>(kTileN<T>, columns - first));
        finish_tile(p, {sums + first, kScaledColumns, rows, width}, 0, j + first, p.beta, true);
      }
    }
  });
}

}  // namespace ergon::kernels::cpu::gemm_detail
