#pragma once

// What the kernels of this folder that use tensor cores are launched with.

#include <cstdint>

#include "core/cuda/strided.cuh"
#include "core/dtype.h"

namespace ergon::kernels::cuda::conv2d_detail {

using device::FastDivisor;

// A matrix that is never stored: a line for each pixel (i, j) of a grid on each image, and in it for each tap
// (u, v) the channels of the pixel of `data` that the tap falls on, zeros where that is beyond the edge:
//   row = i * stride[0] + first[0] + u * step[0],   column = j * stride[1] + first[1] + v * step[1].
struct Gather {
  const void* data;  // (images, size[0], size[1], channels)
  int size[2];       // rows, columns
  int pixels;        // images * grid area
  int taps;          // rows of taps
  int stride[2], first[2], step[2];
  FastDivisor channels;  // a multiple of 16 bytes
  FastDivisor taps_per_row;
  FastDivisor grid_area, grid_width;
};

// y[image, r, i, j] = bias[r] + sum over k of weights[r, k] * gathered[(image, i, j), k]
struct PixelArguments {
  Gather gather;
  const void* weights;  // (tiles_m * rows of a tile, steps * depth of a step), zeros beyond what there is
  const void* bias;     // (rows) or null
  void* y;
  int rows, tiles_m;
  int steps;                                                 // K-steps
  int image_stride, channel_stride, row_stride, col_stride;  // of y, in elements
  bool vectors;  // four pixels from a multiple of four on lie next to each other and aligned
};

// partials[split, r, k] = sum over the split's pixels of dout[pixel, r] * gathered[pixel, k]
struct WeightArguments {
  Gather gather;
  const void* dout;  // (pixels, channels)
  float* partials;   // (splits, rows, cols)
  int channels;      // of dout, a multiple of 16 bytes
  int rows, cols, tiles_m;
  int steps_per_split;
};

// dw[r, c, tap] = sum over s of partials[s, r, tap, c], split after split.
struct SumArguments {
  const float* partials;  // (splits, rows, taps, padded_channels)
  void* dw;               // (rows, channels, taps)
  DType dtype;
  int splits, rows, taps, channels, padded_channels;
};

// to[image, pixel, c] = from[image, c, pixel], and 0 for c >= channels. Elements of `size` bytes.
struct ChannelsLastArguments {
  const void* from;
  void* to;
  int size, images, channels, pixels, padded_channels;
};

// to[r, k] = from[r * row_stride + c * channel_stride + u * tap_stride[0] + v * tap_stride[1]]
// for r < rows, k = (u * taps[1] + v) * padded_channels + c, c < channels, u < taps[0]; else 0.
struct ReorderArguments {
  const void* from;
  void* to;  // (padded_rows, depth)
  int size;
  int rows, padded_rows, depth;
  int channels, padded_channels;
  int taps[2];
  int row_stride, channel_stride, tap_stride[2];
};

// Of kTiles: 128x128, and 64x64 for few outputs or few pixels.
inline constexpr int kLargeTile = 2, kSmallTile = 4;

// tile: one of these two. splits: of K.
void launch_pixels(DType dtype, int tile, const PixelArguments& arguments);
void launch_weight(DType dtype, int tile, int splits, const WeightArguments& arguments);

void launch_sum(const SumArguments& arguments);
void launch_channels_last(const ChannelsLastArguments& arguments);
void launch_reorder(const ReorderArguments& arguments);

}  // namespace ergon::kernels::cuda::conv2d_detail
