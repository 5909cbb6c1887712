#pragma once

// Gathered operands (arguments.h) on their way into shared memory. Chunks of 16 bytes lie as Operand wants
// them.

#include <climits>

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/conv2d/arguments.h"

namespace ergon::kernels::cuda::conv2d_detail {

using namespace device;

// The pixel that the tap (0, 0) of a grid's pixel falls on, perhaps beyond the edge, and its element of
// channel 0.
struct Corner {
  int row, col, element;
};
__device__ __forceinline__ Corner corner_of(const Gather& g, int pixel) {
  const int image = static_cast<int>(g.grid_area.divide(pixel));
  const int within = pixel - image * static_cast<int>(g.grid_area.divisor);
  const int i = static_cast<int>(g.grid_width.divide(within));
  const int j = within - i * static_cast<int>(g.grid_width.divisor);
  const int row = i * g.stride[0] + g.first[0], col = j * g.stride[1] + g.first[1];
  return {row, col, ((image * g.size[0] + row) * g.size[1] + col) * static_cast<int>(g.channels.divisor)};
}

// Column k of the gathered matrix: how far from the corner its tap lies, and its element.
struct Tap {
  int row, col, element;
  bool exists;
};
__device__ __forceinline__ Tap tap_of(const Gather& g, int k) {
  const int tap = static_cast<int>(g.channels.divide(k));
  const int u = static_cast<int>(g.taps_per_row.divide(tap));
  const int row = u * g.step[0];
  const int col = (tap - u * static_cast<int>(g.taps_per_row.divisor)) * g.step[1];
  return {row, col, (row * g.size[1] + col - tap) * static_cast<int>(g.channels.divisor) + k, u < g.taps};
}

template <class T, int kOffset>
__device__ __forceinline__ void copy_chunk(const Gather& g, std::uint32_t to, const Corner& corner,
                                           const Tap& tap, bool exists) {
  const bool inside = exists && static_cast<unsigned>(corner.row + tap.row) < static_cast<unsigned>(g.size[0])
                      && static_cast<unsigned>(corner.col + tap.col) < static_cast<unsigned>(g.size[1]);
  copy_async<16, kOffset>(to, static_cast<const T*>(g.data) + (corner.element + tap.element),
                          inside ? 16 : 0);
}

// Lines are pixels, from `first` on, and K runs along them.
template <class T, class Operand>
class PixelLines {
 public:
  __device__ PixelLines(const Gather& g, int first) {
#pragma unroll
    for (int l = 0; l < Operand::kLineCopies; ++l) {
      const int pixel = first + places_.line + l * Operand::kLinesAtATime;
      corners_[l] = corner_of(g, pixel);
      if (pixel >= g.pixels) corners_[l].row = INT_MIN / 2;  // outside, whatever the tap
    }
  }

  // K-step `step` into the stage at address `stage`.
  __device__ __forceinline__ void copy(const Gather& g, std::uint32_t stage, int step) const {
    const Tap tap = tap_of(g, step * Operand::kDepth + places_.element);
    Operand::Places::for_each([&](auto l, auto, auto distance) {
      copy_chunk<T, distance>(g, stage + places_.offset, corners_[l], tap, tap.exists);
    });
  }

 private:
  static_assert(Operand::kCopyBytes == 16 && Operand::kCopiesInLine == 1, "one tap at a time");
  typename Operand::Places places_;
  Corner corners_[Operand::kLineCopies];
};

// Lines are pixels, along which lie columns of the gathered matrix, from `first` on; K runs over the pixels
// from `first_pixel` on.
template <class T, class Operand>
class PixelDepths {
 public:
  __device__ PixelDepths(const Gather& g, int first, int first_pixel) : pixel_(first_pixel + places_.line) {
#pragma unroll
    for (int c = 0; c < Operand::kCopiesInLine; ++c) {
      taps_[c] = tap_of(g, first + places_.element + c * Operand::kNeighbours * Operand::kChunk);
    }
  }

  __device__ __forceinline__ void copy(const Gather& g, std::uint32_t stage, int step) const {
    Operand::Places::for_each([&](auto l, auto c, auto distance) {
      const int pixel = pixel_ + step * Operand::kDepth + l * Operand::kLinesAtATime;
      copy_chunk<T, distance>(g, stage + places_.offset, corner_of(g, pixel), taps_[c],
                              taps_[c].exists && pixel < g.pixels);
    });
  }

 private:
  static_assert(Operand::kCopyBytes == 16);
  typename Operand::Places places_;
  Tap taps_[Operand::kCopiesInLine];
  int pixel_;
};

}  // namespace ergon::kernels::cuda::conv2d_detail
