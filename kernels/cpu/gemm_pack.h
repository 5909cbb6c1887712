#pragma once

// Copies panels of A and B into the order in which the register tile reads them, converting to its elements
// on the way.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/gemm_element.h"

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

// Elements E along K.
template <class E>
constexpr int64_t elements_of(int64_t K) {
  return (K + kDepth<E> - 1) / kDepth<E>;
}

// Whole vectors are stored even where a panel is narrower: what runs over falls on the next element along K,
// stored afterwards. This is the number of elements for which `written` lanes may be.
template <class E, class S>
int64_t spill_free(const Panel<S>& p, int width, int written) {
  const int64_t following = (written - 1) / width;
  return std::clamp<int64_t>(elements_of<E>(p.K) + elements_of<E>(p.more) - following, 0, p.K / kDepth<E>);
}

// Lanes side by side in memory: a copy of `lanes` elements for each k.
template <class E, class S>
void pack_adjacent_lanes(const Panel<S>& p, int width, E* target) {
  constexpr int L = kLanes<E>, D = kDepth<E>;
  const int vectors = (width + L - 1) / L;
  // Reads run over as well: into memory that belongs to the matrix as long as another k follows.
  const bool whole = p.lanes == width && (width % L == 0 || p.k_stride >= vectors * L);
  const int64_t safe = whole ? spill_free<E>(p, width, vectors * L) : 0;
  const auto load_at = [&](int64_t k, int lane) __attribute__((always_inline)) {
    return load_across<E>(p.source + k * D * p.k_stride + lane, p.k_stride);
  };
  int64_t k = 0;
  if (vectors == 1) {
    for (; k < safe; ++k) store(target + k * width, load_at(k, 0));
  } else {
    for (; k < safe; ++k) {
      for (int v = 0; v < vectors; ++v) store(target + k * width + v * L, load_at(k, v * L));
    }
  }
  for (; k < elements_of<E>(p.K); ++k) {
    const S* source = p.source + k * D * p.k_stride;
    for (int l = 0; l < width; ++l)
      target[k * width + l] = l < p.lanes ? element<E>(source + l, p.k_stride, p.K - k * D) : E{};
  }
}

// Each lane contiguous over k: square blocks are transposed in registers. Lanes from p.lanes on repeat the
// last.
template <class E, class S>
void pack_contiguous_lanes(const Panel<S>& p, int width, E* target) {
  constexpr int L = kLanes<E>, D = kDepth<E>;
  const auto lane = [&](int l, int64_t k) {
    return p.source + std::min(l, p.lanes - 1) * p.lane_stride + k * D;
  };
  for (int64_t k0 = 0; k0 * D < p.K; k0 += L) {
    const int64_t rest = p.K - k0 * D, count = std::min<int64_t>(L, elements_of<E>(rest));
    // Descending, so that what runs over falls on lanes stored afterwards.
    for (int l0 = (width - 1) / L * L; l0 >= 0; l0 -= L) {
      E* rows = target + k0 * width + l0;
      const int64_t safe = spill_free<E>(p, width, std::max(width, l0 + L)) - k0;
      Vec<E> block[L];
      if (safe >= L) {
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) block[l] = load_along<E>(lane(l0 + l, k0));
        transpose<E>(block);
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) store(rows + k * width, block[k]);
      } else {
        for (int l = 0; l < L; ++l)
          block[l] = load_partial<E>(lane(l0 + l, k0), std::min<int64_t>(rest, L * D));
        transpose<E>(block);
        const int64_t bytes = std::min(L, width - l0) * static_cast<int64_t>(sizeof(E));
        for (int64_t k = 0; k < count; ++k)
          std::memcpy(static_cast<void*>(rows + k * width), &block[k], static_cast<size_t>(bytes));
      }
    }
  }
}

// target[element * width + lane]; lanes from p.lanes to width get some value that no result depends on.
// Writes elements_of<E>(K) * width elements and nothing after them.
template <class E, class S>
void pack_panel(const Panel<S>& p, int width, E* target) {
  if (p.lane_stride == 1) return pack_adjacent_lanes(p, width, target);
  if (p.k_stride == 1) return pack_contiguous_lanes(p, width, target);
  for (int64_t k = 0; k < p.K; k += kDepth<E>) {
    for (int l = 0; l < width; ++l) {
      *target++ = element<E>(p.source + std::min(l, p.lanes - 1) * p.lane_stride + k * p.k_stride, p.k_stride,
                             p.K - k);
    }
  }
}

}  // namespace ergon::kernels::cpu::gemm_detail
