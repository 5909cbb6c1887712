#pragma once

// The register tiles of convolution. An image is staged as dense planes in the arithmetic type, padded, with
// one plane for each residue of the position modulo the stride; then every kernel tap reads a contiguous run
// at a fixed offset from the output's position, and nothing like im2col is needed.

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/convert.h"
#include "kernels/cpu/simd.h"

namespace ergon::kernels::cpu::conv2d_detail {

using std::int64_t;

struct ConvTile {
  int rows;                  // output channels in registers
  int vectors;               // vectors of positions in registers
  int dots_rows, dots_taps;  // of the weight gradient: channels x taps
};

constexpr ConvTile conv_tile() {
#if defined(__AVX512F__)
  return {8, 3, 4, 6};  // 24 of 32 registers accumulate
#else
  return {4, 2, 2, 4};  // 8 of 16
#endif
}
inline constexpr int kDotTaps = conv_tile().dots_taps;

// The tile of a group with one channel (depthwise convolution) has one row, else most of it would be idle.
template <bool kSingle>
struct Tile {
  static constexpr int kRows = kSingle ? 1 : conv_tile().rows;
  static constexpr int kMaxVectors = kSingle ? 8 : conv_tile().vectors;
  static constexpr int kDotRows = kSingle ? 1 : conv_tile().dots_rows;
};

// Calls f with the tile for groups of `channels` channels.
template <class F>
void with_tile(int64_t channels, F&& f) {
  if (channels == 1) return f(Tile<true>{});
  f(Tile<false>{});
}

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One dimension of a staged plane: `size` positions, the first one `first` and `step` apart in the source.
struct Axis {
  int64_t first = 0, step = 1, size = 0;
};

// target[i][j] = source[rows.first + i * rows.step][cols.first + j * cols.step], 0 outside height x width.
template <class S, class T>
void stage_plane(const S* source, int64_t height, int64_t width, const Axis& rows, const Axis& cols,
                 T* target) {
  // Columns [begin, end) are inside.
  const auto at_least = [&](int64_t x) {  // the first column at x or right of it
    return std::clamp<int64_t>(x <= cols.first ? 0 : (x - cols.first + cols.step - 1) / cols.step, 0,
                               cols.size);
  };
  const int64_t begin = at_least(0), end = std::max(begin, at_least(width));
  for (int64_t i = 0; i < rows.size; ++i, target += cols.size) {
    const int64_t row = rows.first + i * rows.step;
    if (row < 0 || row >= height) {
      std::fill_n(target, cols.size, T(0));
      continue;
    }
    std::fill_n(target, begin, T(0));
    const S* from = source + row * width + cols.first + begin * cols.step;
    if (cols.step == 1) {
      convert_run(from, target + begin, end - begin);
    } else {
      for (int64_t j = begin; j < end; ++j) target[j] = convert<T>(from[(j - begin) * cols.step]);
    }
    std::fill_n(target + end, cols.size - end, T(0));
  }
}

// out[r * ld + j] = sum_k weights[k * kRows + r] * image[offsets[k] + j], kVectors vectors of j.
template <int kRows, int kVectors, class T>
void tap_tile(const T* image, const std::vector<int64_t>& offsets, const T* weights, T* out, int64_t ld) {
  Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sum[r][i] = Vec<T>{};
  }
  for (const int64_t offset : offsets) {
    Vec<T> x[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) x[i] = load(image + offset + i * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T w = weights[r];
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) sum[r][i] += w * x[i];
    }
    weights += kRows;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) store(out + r * ld + i * kLanes<T>, sum[r][i]);
  }
}

// tap_tile for 1 to kMaxVectors vectors.
template <class Tile, class T, int... kIndex>
constexpr auto tap_tiles(std::integer_sequence<int, kIndex...>) {
  return std::array{&tap_tile<Tile::kRows, kIndex + 1, T>...};
}

// The same for `blocks` blocks of kRows channels and `vectors` vectors of positions. weights (blocks, taps,
// kRows), out (blocks * kRows, vectors * kLanes); reads up to the last vector's end at every offset.
template <class Tile, class T>
void sum_taps(const T* image, const std::vector<int64_t>& offsets, const T* weights, int64_t blocks,
              int64_t vectors, T* out) {
  constexpr auto kTiles = tap_tiles<Tile, T>(std::make_integer_sequence<int, Tile::kMaxVectors>{});
  const int64_t ld = vectors * kLanes<T>;
  const int64_t block_weights = static_cast<int64_t>(offsets.size()) * Tile::kRows;
  const int64_t tiles = (vectors + Tile::kMaxVectors - 1) / Tile::kMaxVectors;
  for (int64_t tile = 0; tile < tiles; ++tile) {  // of even widths
    const int64_t first = vectors * tile / tiles, count = vectors * (tile + 1) / tiles - first;
    for (int64_t block = 0; block < blocks; ++block) {
      kTiles[static_cast<std::size_t>(count - 1)](image + first * kLanes<T>, offsets,
                                                  weights + block * block_weights,
                                                  out + block * Tile::kRows * ld + first * kLanes<T>, ld);
    }
  }
}

// sums[r * kDotTaps + k] = sum over images and j of douts[r * dout_ld + j] * image[offsets[k] + j], `vectors`
// vectors of j; images and output gradients lie image_stride and dout_stride apart.
template <int kDotRows, class T>
void dot_tile(const T* image, int64_t image_stride, const int64_t* offsets, const T* dout,
              int64_t dout_stride, int64_t dout_ld, int64_t images, int64_t vectors, T* sums) {
  Vec<T> sum[kDotRows][kDotTaps];
#pragma GCC unroll 8
  for (int r = 0; r < kDotRows; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < kDotTaps; ++k) sum[r][k] = Vec<T>{};
  }
  for (int64_t n = 0; n < images; ++n, image += image_stride, dout += dout_stride) {
    const T* x[kDotTaps];
#pragma GCC unroll 8
    for (int k = 0; k < kDotTaps; ++k) x[k] = image + offsets[k];
    for (int64_t j = 0; j < vectors * kLanes<T>; j += kLanes<T>) {
      Vec<T> d[kDotRows];
#pragma GCC unroll 8
      for (int r = 0; r < kDotRows; ++r) d[r] = load(dout + r * dout_ld + j);
#pragma GCC unroll 8
      for (int k = 0; k < kDotTaps; ++k) {
        const Vec<T> v = load(x[k] + j);
#pragma GCC unroll 8
        for (int r = 0; r < kDotRows; ++r) sum[r][k] += d[r] * v;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kDotRows; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < kDotTaps; ++k) {
      T total = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) total += sum[r][k][lane];
      sums[r * kDotTaps + k] = total;
    }
  }
}

}  // namespace ergon::kernels::cpu::conv2d_detail
