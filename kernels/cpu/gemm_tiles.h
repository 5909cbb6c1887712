#pragma once

// A product by register tiles alone, for kernels that multiply small blocks many times: on the calling
// thread, nothing checked, packed or converted.

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/gemm_kernel.h"

namespace ergon::kernels::cpu::gemm_detail {

// C (M, N) (+)= alpha * A B, N a multiple of kLanes<T>: whole vectors of B and C are read and written.
//
// a  element (i, k) at a[i * row_stride + k * col_stride]
// b  element (k, j) at b[j / kTileN * panel_stride + k * ldb + j % kTileN]: rows (panel_stride = kTileN), or
//    panels as pack_panel makes them (ldb = kTileN, panel_stride = K * kTileN)
// c  element (i, j) at c[i * ldc + j]
template <class T>
struct TileProduct {
  int64_t M, N, K;
  const T* a;
  int64_t row_stride, col_stride;
  const T* b;
  int64_t ldb, panel_stride;
  T* c;
  int64_t ldc;
  T alpha = 1;
  bool accumulate = false;
};

template <class T>
void multiply_tiles(const TileProduct<T>& p) {
  for (int64_t j = 0; j < p.N; j += kTileN<T>) {
    for (int64_t i = 0; i < p.M; i += kTileM) {
      T* c = p.c + i * p.ldc + j;
      const TileArgs<T> args = {.K = p.K,
                                .a = p.a + i * p.row_stride,
                                .row_stride = p.row_stride,
                                .col_stride = p.col_stride,
                                .b = p.b + j / kTileN<T> * p.panel_stride,
                                .ldb = p.ldb,
                                .c = c,
                                .ldc = p.ldc,
                                .alpha = p.alpha,
                                .accumulate = p.accumulate,
                                .destination = reinterpret_cast<const char*>(c),
                                .destination_stride = p.ldc * static_cast<int64_t>(sizeof(T))};
      run_tile(args, static_cast<int>(std::min<int64_t>(kTileM, p.M - i)), p.N - j > kLanes<T> ? 2 : 1);
    }
  }
}

}  // namespace ergon::kernels::cpu::gemm_detail
