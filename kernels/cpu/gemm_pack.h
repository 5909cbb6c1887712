#pragma once

// Copies panels of A and B into the order in which the register tile reads them, converting to the
// accumulator's type on the way.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/simd.h"

namespace ergon::kernels::cpu::gemm_detail {

using std::int64_t;

// `lanes` rows of A, or columns of B, over k in [0, K): source[lane * lane_stride + k * k_stride]. `more` k
// of the same panel follow and will be packed later.
template <class S>
struct Panel {
  const S* source;
  int64_t lane_stride, k_stride;
  int lanes;
  int64_t K;
  int64_t more = 0;
};

// Whole vectors are stored even where a panel is narrower: what runs over falls on the next k, stored
// afterwards. This is the number of k for which `written` lanes may be.
template <class S>
int64_t spill_free(const Panel<S>& p, int width, int written) {
  const int64_t following = (written - 1) / width;
  return std::clamp<int64_t>(p.K + p.more - following, 0, p.K);
}

// The first n < kLanes elements, the rest zero.
template <class T, class S>
Vec<T> load_partial(const S* source, int64_t n) {
  T elements[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) elements[i] = static_cast<T>(source[i]);
  return load(elements);
}

// Lanes side by side in memory: a copy of `lanes` elements for each k.
template <class S, class T>
void pack_adjacent_lanes(const Panel<S>& p, int width, T* target) {
  constexpr int L = kLanes<T>;
  const int vectors = (width + L - 1) / L;
  // Reads run over as well: into memory that belongs to the matrix as long as another k follows.
  const bool whole = p.lanes == width && (width % L == 0 || p.k_stride >= vectors * L);
  const int64_t safe = whole ? spill_free(p, width, vectors * L) : 0;
  int64_t k = 0;
  if (vectors == 1) {
    for (; k < safe; ++k) store(target + k * width, load(p.source + k * p.k_stride));
  } else {
    for (; k < safe; ++k) {
      for (int v = 0; v < vectors; ++v)
        store(target + k * width + v * L, load(p.source + k * p.k_stride + v * L));
    }
  }
  for (; k < p.K; ++k) {
    const S* source = p.source + k * p.k_stride;
    for (int l = 0; l < width; ++l) target[k * width + l] = l < p.lanes ? static_cast<T>(source[l]) : T(0);
  }
}

// Each lane contiguous over k: square blocks are transposed in registers. Lanes from p.lanes on repeat the
// last.
template <class S, class T>
void pack_contiguous_lanes(const Panel<S>& p, int width, T* target) {
  constexpr int L = kLanes<T>;
  const auto lane = [&](int l, int64_t k) { return p.source + std::min(l, p.lanes - 1) * p.lane_stride + k; };
  for (int64_t k0 = 0; k0 < p.K; k0 += L) {
    const int64_t count = std::min<int64_t>(L, p.K - k0);
    // Descending, so that what runs over falls on lanes stored afterwards.
    for (int l0 = (width - 1) / L * L; l0 >= 0; l0 -= L) {
      T* rows = target + k0 * width + l0;
      const int64_t safe = spill_free(p, width, std::max(width, l0 + L)) - k0;
      Vec<T> block[L];
      if (count == L && safe >= L) {
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) block[l] = load(lane(l0 + l, k0));
        transpose<T>(block);
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) store(rows + k * width, block[k]);
      } else {
        for (int l = 0; l < L; ++l) block[l] = load_partial<T>(lane(l0 + l, k0), count);
        transpose<T>(block);
        const int64_t bytes = std::min(L, width - l0) * static_cast<int64_t>(sizeof(T));
        for (int64_t k = 0; k < count; ++k)
          std::memcpy(rows + k * width, &block[k], static_cast<size_t>(bytes));
      }
    }
  }
}

// target[k * width + lane]; lanes from p.lanes to width get some value that no result depends on. Writes K *
// width elements and nothing after them.
template <class S, class T>
void pack_panel(const Panel<S>& p, int width, T* target) {
  if (p.lane_stride == 1) return pack_adjacent_lanes(p, width, target);
  if (p.k_stride == 1) return pack_contiguous_lanes(p, width, target);
  for (int64_t k = 0; k < p.K; ++k) {
    for (int l = 0; l < width; ++l) {
      target[k * width + l] =
          static_cast<T>(p.source[std::min(l, p.lanes - 1) * p.lane_stride + k * p.k_stride]);
    }
  }
}

}  // namespace ergon::kernels::cpu::gemm_detail
