// The tensors of a convolution in the order that tensor cores want them, and back.

#include "core/cuda/types.cuh"
#include "kernels/cuda/common/any_dtype.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/conv2d/arguments.h"

namespace ergon::kernels::cuda::conv2d_detail {
namespace {

using namespace device;

constexpr int kThreads = 256;
constexpr int kSide = 32;  // of a tile that passes through shared memory
constexpr int kLines = kThreads / kSide;

// The grid: (tiles of pixels, tiles of channels, images).
template <class Word>
__global__ void __launch_bounds__(kThreads) channels_last_kernel(const ChannelsLastArguments p) {
  __shared__ Word tile[kSide][kSide + 4 / sizeof(Word)];  // columns in different banks
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int pixel = static_cast<int>(blockIdx.x) * kSide, channel = static_cast<int>(blockIdx.y) * kSide;
  for (int image = static_cast<int>(blockIdx.z); image < p.images; image += static_cast<int>(gridDim.z)) {
    const Word* from = static_cast<const Word*>(p.from) + image * p.channels * p.pixels;
    Word* to = static_cast<Word*>(p.to) + image * p.pixels * p.padded_channels;
#pragma unroll
    for (int line = y; line < kSide; line += kLines) {
      const int c = channel + line;
      tile[line][x] = c < p.channels && pixel + x < p.pixels ? from[c * p.pixels + pixel + x] : Word(0);
    }
    __syncthreads();
#pragma unroll
    for (int line = y; line < kSide; line += kLines) {
      if (channel + x < p.padded_channels && pixel + line < p.pixels) {
        to[(pixel + line) * p.padded_channels + channel + x] = tile[x][line];
      }
    }
    __syncthreads();
  }
}

template <class Word>
__global__ void __launch_bounds__(kThreads) reorder_kernel(const ReorderArguments p) {
  const int all = p.padded_rows * p.depth;
  for (int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); index < all;
       index += static_cast<int>(gridDim.x) * kThreads) {
    const int row = index / p.depth, k = index % p.depth;
    const int tap = k / p.padded_channels, channel = k % p.padded_channels;
    const bool exists = row < p.rows && channel < p.channels && tap < p.taps[0] * p.taps[1];
    static_cast<Word*>(p.to)[index] =
        exists ? static_cast<const Word*>(
            p.from)[row * p.row_stride + channel * p.channel_stride + tap / p.taps[1] * p.tap_stride[0]
                    + tap % p.taps[1] * p.tap_stride[1]]
               : Word(0);
  }
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const SumArguments p) {
  const int cols = p.taps * p.padded_channels, all = p.rows * cols;
  for (int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); index < all;
       index += static_cast<int>(gridDim.x) * kThreads) {
    const int row = index / cols, tap = index % cols / p.padded_channels, channel = index % p.padded_channels;
    if (channel >= p.channels) continue;
    float sum = 0;
    for (int s = 0; s < p.splits; ++s) sum += p.partials[std::int64_t{s} * all + index];
    store_as<float, 1>(p.dw, p.dtype, (row * p.channels + channel) * p.taps + tap, {sum});
  }
}

// Calls f with a number of `size` bytes.
template <class F>
void with_word(int size, const F& f) {
  size == 4 ? f(std::uint32_t{}) : f(std::uint16_t{});
}

unsigned blocks_for(std::int64_t items) {
  return static_cast<unsigned>(grid_stride_blocks(items, kThreads, kThreads));
}

}  // namespace

void launch_channels_last(const ChannelsLastArguments& p) {
  if (p.images == 0) return;
  const auto tiles = [](int count) { return static_cast<unsigned>((count + kSide - 1) / kSide); };
  const dim3 grid(tiles(p.pixels), tiles(p.padded_channels),
                  static_cast<unsigned>(std::min(p.images, 65535)));
  with_word(p.size, [&](auto word) {
    channels_last_kernel<decltype(word)><<<grid, dim3(kSide, kLines), 0, stream()>>>(p);
  });
  CUDA_CHECK_LAUNCH();
}

void launch_reorder(const ReorderArguments& p) {
  const std::int64_t elements = std::int64_t{p.padded_rows} * p.depth;
  if (elements == 0) return;
  with_word(p.size, [&](auto word) {
    reorder_kernel<decltype(word)><<<blocks_for(elements), kThreads, 0, stream()>>>(p);
  });
  CUDA_CHECK_LAUNCH();
}

void launch_sum(const SumArguments& p) {
  const std::int64_t elements = std::int64_t{p.rows} * p.taps * p.padded_channels;
  sum_kernel<<<blocks_for(elements), kThreads, 0, stream()>>>(p);
  CUDA_CHECK_LAUNCH();
}

}  // namespace ergon::kernels::cuda::conv2d_detail
