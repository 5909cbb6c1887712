// Convolution on tensor cores: tensor_core.h says what is multiplied.

#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/conv2d/gather.cuh"
#include "kernels/cuda/gemm/tile_product.cuh"

namespace ergon::kernels::cuda::conv2d_detail {
namespace {

using namespace device;
using gemm_detail::Bf16Math;
using gemm_detail::F16Math;
using gemm_detail::kTiles;
using gemm_detail::SplitTf32Math;
using gemm_detail::Tile;
using gemm_detail::TileProduct;

// Tiles next to each other share pixels, which they find in L2.
template <class Math, int kTile>
__global__ void __launch_bounds__(kTiles[kTile].threads(), kTiles[kTile].blocks)
    conv2d_pixels_kernel(const __grid_constant__ PixelArguments p) {
  using T = typename Math::Element;
  using Product = TileProduct<Math, kTile, true, true>;
  constexpr Tile kT = kTiles[kTile];
  extern __shared__ __align__(128) unsigned char shared[];
  const Product product(shared);
  const int first_row = static_cast<int>(blockIdx.x) % p.tiles_m * kT.rows;
  const int first_pixel = static_cast<int>(blockIdx.x) / p.tiles_m * kT.cols;

  typename Product::A::Copy weights;
  const int depth = p.steps * Product::kDepth;
  const PixelLines<T, typename Product::B> pixels(p.gather, first_pixel);
  typename Product::Sums sums;
  product.multiply(
      sums, p.steps, 0,
      [&] {
        weights.start({.line_stride = depth, .unit = 1}, static_cast<const T*>(p.weights), first_row, 0,
                      p.tiles_m * kT.rows, depth);
      },
      [&](int step, std::uint32_t stage_a, std::uint32_t stage_b, auto) {
        weights.whole_step(stage_a);
        pixels.copy(p.gather, stage_b, step);
      });

  int to[4];  // channel 0 of this thread's pixels
  const int pixel = first_pixel + product.run_col();
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int image = static_cast<int>(p.gather.grid_area.divide(pixel + e));
    const int within = pixel + e - image * static_cast<int>(p.gather.grid_area.divisor);
    const int i = static_cast<int>(p.gather.grid_width.divide(within));
    const int j = within - i * static_cast<int>(p.gather.grid_width.divisor);
    to[e] = image * p.image_stride + i * p.row_stride + j * p.col_stride;
  }
  product.for_each_run(sums, [&](int tile_row, const float(&values)[4]) {
    const int row = first_row + tile_row;
    if (row >= p.rows) return;
    const float bias = p.bias == nullptr ? 0.0f : convert<float>(static_cast<const T*>(p.bias)[row]);
    T* y = static_cast<T*>(p.y) + row * p.channel_stride;
    if (p.vectors) {
      Vector<T, 4> rounded;
#pragma unroll
      for (int e = 0; e < 4; ++e) rounded[e] = convert<T>(values[e] + bias);
      if (pixel < p.gather.pixels) store(y + to[0], rounded);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (pixel + e < p.gather.pixels) y[to[e]] = convert<T>(values[e] + bias);
      }
    }
  });
}

// The grid: (tiles, splits).
template <class Math, int kTile>
__global__ void __launch_bounds__(kTiles[kTile].threads(), kTiles[kTile].blocks)
    conv2d_weight_kernel(const __grid_constant__ WeightArguments p) {
  using T = typename Math::Element;
  using Product = TileProduct<Math, kTile, false, false>;
  constexpr Tile kT = kTiles[kTile];
  extern __shared__ __align__(128) unsigned char shared[];
  const Product product(shared);
  const int first_row = static_cast<int>(blockIdx.x) % p.tiles_m * kT.rows;
  const int first_col = static_cast<int>(blockIdx.x) / p.tiles_m * kT.cols;
  const int split = static_cast<int>(blockIdx.y);
  const int first_pixel = split * p.steps_per_split * Product::kDepth;
  const int pixels = max(min(p.gather.pixels - first_pixel, p.steps_per_split * Product::kDepth), 0);

  typename Product::A::Copy dout;
  const PixelDepths<T, typename Product::B> columns(p.gather, first_col, first_pixel);
  typename Product::Sums sums;
  product.multiply(
      sums, (pixels + Product::kDepth - 1) / Product::kDepth, 0,
      [&] {
        dout.start({.line_stride = p.channels, .unit = 1}, static_cast<const T*>(p.dout), first_row,
                   first_pixel, p.channels, p.gather.pixels);
      },
      [&](int step, std::uint32_t stage_a, std::uint32_t stage_b, auto) {
        dout.aligned_step(stage_a, step);
        columns.copy(p.gather, stage_b, step);
      });

  const int col = first_col + product.run_col();
  product.for_each_run(sums, [&](int tile_row, const float(&values)[4]) {
    const int row = first_row + tile_row;
    if (row >= p.rows || col >= p.cols) return;
    Vector<float, 4> vector{{values[0], values[1], values[2], values[3]}};
    store(p.partials + (std::int64_t{split} * p.rows + row) * p.cols + col, vector);
  });
}

// Calls f with the arithmetic of dtype and the constant index of the tile.
template <class F>
void with_kernel(DType dtype, int tile, const F& f) {
  const auto with_math = [&](auto index) {
    if (dtype == DType::bf16) return f(Bf16Math{}, index);
    if (dtype == DType::f16) return f(F16Math{}, index);
    f(SplitTf32Math{}, index);
  };
  if (tile == kLargeTile) return with_math(std::integral_constant<int, kLargeTile>{});
  with_math(std::integral_constant<int, kSmallTile>{});
}

template <class Arguments>
void launch(void (*kernel)(Arguments), dim3 grid, const Tile& tile, const Arguments& arguments) {
  allow_shared_memory(kernel, tile.shared_bytes());
  kernel<<<grid, static_cast<unsigned>(tile.threads()), static_cast<unsigned>(tile.shared_bytes()),
           stream()>>>(arguments);
  CUDA_CHECK_LAUNCH();
}

unsigned tiles(int tiles_m, int cols, const Tile& tile) {
  return static_cast<unsigned>(tiles_m * ((cols + tile.cols - 1) / tile.cols));
}

}  // namespace

void launch_pixels(DType dtype, int tile, const PixelArguments& p) {
  with_kernel(dtype, tile, [&](auto math, auto index) {
    launch(conv2d_pixels_kernel<decltype(math), index>, tiles(p.tiles_m, p.gather.pixels, kTiles[index]),
           kTiles[index], p);
  });
}

void launch_weight(DType dtype, int tile, int splits, const WeightArguments& p) {
  with_kernel(dtype, tile, [&](auto math, auto index) {
    launch(conv2d_weight_kernel<decltype(math), index>,
           dim3(tiles(p.tiles_m, p.cols, kTiles[index]), static_cast<unsigned>(splits)), kTiles[index], p);
  });
}

}  // namespace ergon::kernels::cuda::conv2d_detail
