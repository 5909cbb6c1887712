#pragma once

// The register tile of the CPU matrix product: C tile (rows x kTileN) += A panel * B panel.

#include <array>
#include <cstdint>
#include <utility>

#include "kernels/cpu/gemm_element.h"

namespace ergon::kernels::cpu::gemm_detail {

using std::int64_t;

struct TileShape {
  int m;        // rows of C in registers
  int vectors;  // vectors of C's columns in registers
};

constexpr TileShape tile_shape() {
#if defined(__AVX512F__)
  return {14, 2};  // 28 of 32 registers accumulate; 2 hold B, 1 a broadcast of A: 16 loads for 28 FMAs
#elif defined(__AVX__)
  return {6, 2};  // 12 of 16 registers: the most that leaves 2 for B and 1 for A
#else
  return {4, 2};  // SSE2 has 16 registers but no broadcast load, which costs one more; NEON could take more
#endif
}

inline constexpr int kTileM = tile_shape().m;
template <class E>
inline constexpr int kTileN = tile_shape().vectors* kLanes<E>;

// c[i, j] (+)= alpha * sum_k a[i * row_stride + k * col_stride] * b[k * ldb + j]
// for i < rows and j < vectors * kLanes<E>. The sum over k runs in order in one accumulator per element, so
// the bits of an element do not depend on the tile that computes it.
template <class E>
struct TileArgs {
  int64_t K;  // elements: for pairs half of the product's
  const E* a;
  int64_t row_stride, col_stride;
  const E* b;
  int64_t ldb;
  Sum<E>* c;
  int64_t ldc;
  Sum<E> alpha;
  bool accumulate;
  // Where the tile will end up, if c is only on the way there, and the bytes from row to row.
  const char* destination;
  int64_t destination_stride;
};

// kPackedA: row_stride == 1 and col_stride == kRows are known to the compiler.
template <class E, int kRows, int kVectors, bool kPackedA>
void tile(const TileArgs<E>& args) {
  using T = Sum<E>;
  constexpr int L = kLanes<E>;
  Vec<T> acc[kRows][kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Vec<T>{};
  }
  const E* a = args.a;
  const E* b = args.b;
  const int64_t row_stride = kPackedA ? 1 : args.row_stride;
  const int64_t col_stride = kPackedA ? kRows : args.col_stride;
  const int64_t ldb = args.ldb;
  const auto multiply = [&]() __attribute__((always_inline)) {
    Vec<E> bv[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) bv[j] = load(b + j * L);
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
      const E av = a[i * row_stride];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) acc[i][j] = multiply_add(av, bv[j], acc[i][j]);
    }
    a += col_stride;
    b += ldb;
  };
  // The lines of C come while the sums start: the burst of stores at the end would wait for one after
  // another.
  int64_t k = 0;
  const int64_t early = args.K < kRows ? args.K : kRows;
  const char* c_row = args.destination;
#pragma GCC unroll 1
  for (; k < early; ++k) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) __builtin_prefetch(c_row + j * kVectorBytes, 1);
    c_row += args.destination_stride;
    multiply();
  }
  if constexpr (!kPackedA) {
    // A in place lies in as many streams as it has rows, more than the hardware follows. Each step asks for
    // one line that is needed kAhead steps later; near the end, of the rows below, which come next. Where
    // rows lie side by side, the last one's line: the tile above has had the first one's.
    constexpr int64_t kAhead = 32;
    const bool contiguous = col_stride == 1;
    const int64_t period = contiguous ? 64 / static_cast<int64_t>(sizeof(E)) : 1;
    const int64_t line = contiguous ? 0 : (kRows - 1) * row_stride;
    const E* ahead = a;
    int64_t countdown = 0;
#pragma GCC unroll 1
    for (; k < args.K; ++k) {
      if (countdown-- == 0) {
        const bool inside = args.K - k > kAhead;
        ahead =
            a + (inside ? kAhead : kAhead - args.K) * col_stride + (inside ? 0 : kRows * row_stride) + line;
        countdown = period - 1;
      }
      __builtin_prefetch(ahead);
      ahead += row_stride;
      multiply();
    }
  } else {
#pragma GCC unroll 1
    for (; k < args.K; ++k) multiply();
  }
  const T alpha = args.alpha;
  if (alpha != T(1)) {
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) acc[i][j] *= alpha;
    }
  }
  T* const c = args.c;
  const int64_t ldc = args.ldc;
  if (args.accumulate) {
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) acc[i][j] += load(c + i * ldc + j * L);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(c + i * ldc + j * L, acc[i][j]);
  }
}

template <class E>
using TileFunction = void (*)(const TileArgs<E>&);

namespace tile_table {
template <class E, int kVectors, int... kIndex>
constexpr std::array<TileFunction<E>, kTileM> make(std::integer_sequence<int, kIndex...>) {
  return {tile<E, kIndex + 1, kVectors, false>...};
}
// Indexed by vectors - 1 and rows - 1.
template <class E>
inline constexpr std::array<std::array<TileFunction<E>, kTileM>, 2> kStrided = {
    make<E, 1>(std::make_integer_sequence<int, kTileM>{}),
    make<E, 2>(std::make_integer_sequence<int, kTileM>{}),
};
}  // namespace tile_table

template <class E>
inline void run_tile(const TileArgs<E>& args, int rows, int vectors) {
  if (rows == kTileM && vectors == 2 && args.row_stride == 1 && args.col_stride == kTileM) {
    tile<E, kTileM, 2, true>(args);
  } else {
    tile_table::kStrided<E>[vectors - 1][rows - 1](args);
  }
}

}  // namespace ergon::kernels::cpu::gemm_detail
