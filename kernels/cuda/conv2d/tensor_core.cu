// What the kernels on tensor cores are launched with.

#include <algorithm>
#include <numeric>

#include "core/cuda/vector.cuh"
#include "kernels/cuda/conv2d/arguments.h"
#include "kernels/cuda/conv2d/tensor_core.h"
#include "kernels/cuda/gemm/tile.h"

namespace ergon::kernels::cuda::conv2d_detail {
namespace {

using gemm_detail::kTiles;
using gemm_detail::Tile;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

int size(DType dtype) { return static_cast<int>(size_of(dtype)); }
std::int64_t padded(std::int64_t channels, DType dtype) { return round_up(channels, 16 / size(dtype)); }
std::int64_t area(const std::array<std::int64_t, 2>& extent) { return extent[0] * extent[1]; }

// The large tile where that leaves no multiprocessor of a large GPU idle. A function of the sizes alone.
int tile_for(std::int64_t rows, std::int64_t cols, std::int64_t splits = 1) {
  constexpr std::int64_t kMultiprocessors = 108;
  const Tile& large = kTiles[kLargeTile];
  const std::int64_t tiles = ceil_div(rows, large.rows) * ceil_div(cols, large.cols) * splits;
  return rows > kTiles[kSmallTile].rows && tiles >= kMultiprocessors ? kLargeTile : kSmallTile;
}

// The places of a pass's parts in the workspace, each aligned to 16 bytes.
class Workspace {
 public:
  explicit Workspace(void* data) : data_(static_cast<char*>(data)) {}
  char* take(std::int64_t bytes) {
    const std::int64_t from = bytes_;
    bytes_ += round_up(bytes, 16);
    return data_ == nullptr ? nullptr : data_ + from;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* data_;
  std::int64_t bytes_ = 0;
};

// ---- tensors in another order ----

std::int64_t channels_last_bytes(DType dtype, std::int64_t images, std::int64_t channels,
                                 std::int64_t pixels) {
  return images * padded(channels, dtype) * pixels * size(dtype);
}

void channels_last(DType dtype, std::int64_t images, std::int64_t channels, std::int64_t pixels,
                   const void* from, void* to) {
  launch_channels_last({.from = from,
                        .to = to,
                        .size = size(dtype),
                        .images = static_cast<int>(images),
                        .channels = static_cast<int>(channels),
                        .pixels = static_cast<int>(pixels),
                        .padded_channels = static_cast<int>(padded(channels, dtype))});
}

// K-steps of a product whose depth is `taps` taps of `channels` channels.
std::int64_t steps_of(DType dtype, int tile, std::int64_t taps, std::int64_t channels) {
  return ceil_div(taps * padded(channels, dtype), kTiles[tile].step(size(dtype)));
}

// Enough for the rows of whole tiles and the depth of whole K-steps, whatever the tile.
std::int64_t weights_bytes(DType dtype, std::int64_t rows, std::int64_t taps, std::int64_t channels) {
  const std::int64_t depth = kTiles[kSmallTile].step(size(dtype));  // the longer step
  return round_up(rows, kTiles[kLargeTile].rows) * round_up(taps * padded(channels, dtype), depth)
         * size(dtype);
}

// ---- the pixels of y or dx ----

// Along one dimension: what pixels of the grid read, and the kernel's positions that take part.
struct Axis {
  std::int64_t grid = 0;  // pixels
  std::int64_t stride = 1, first = 0, step = 1;
  std::int64_t taps = 0;  // the kernel's positions tap, tap + tap_step, ...
  std::int64_t tap = 0, tap_step = 1;
  std::int64_t to = 0, to_step = 1;  // pixel i of the grid is pixel to + i * to_step of the result
};

Axis forward_axis(const Conv2dGeometry& g, std::size_t d) {
  return {.grid = g.output[d],
          .stride = g.stride[d],
          .first = -g.padding[d],
          .step = g.dilation[d],
          .taps = g.kernel[d]};
}

// Rows r = residue + q * stride of dx get something from the taps t that reach them from whole rows of dout:
// r + padding - t * dilation is a multiple of the stride for every (stride / gcd)-th tap, or for none.
Axis backward_axis(const Conv2dGeometry& g, std::size_t d, std::int64_t residue) {
  const std::int64_t stride = g.stride[d], dilation = g.dilation[d], kernel = g.kernel[d];
  const std::int64_t period = stride / std::gcd(stride, dilation);
  Axis axis{.grid = ceil_div(g.input[d] - residue, stride),
            .step = -(period * dilation / stride),
            .tap_step = period,
            .to = residue,
            .to_step = stride};
  for (std::int64_t tap = 0; tap < std::min(kernel, period); ++tap) {
    const std::int64_t from = residue + g.padding[d] - tap * dilation;
    if (from % stride != 0) continue;
    axis.tap = tap;
    axis.first = from / stride;
    axis.taps = ceil_div(kernel - tap, period);
  }
  return axis;
}

Gather gather_of(const void* data, std::int64_t channels, const std::array<std::int64_t, 2>& extent,
                 std::int64_t images, const std::array<Axis, 2>& axes) {
  Gather gather{.data = data,
                .size = {static_cast<int>(extent[0]), static_cast<int>(extent[1])},
                .pixels = static_cast<int>(images * axes[0].grid * axes[1].grid),
                .taps = static_cast<int>(axes[0].taps),
                .stride = {},
                .first = {},
                .step = {},
                .channels = FastDivisor(channels),
                .taps_per_row = FastDivisor(std::max<std::int64_t>(axes[1].taps, 1)),
                .grid_area = FastDivisor(axes[0].grid * axes[1].grid),
                .grid_width = FastDivisor(axes[1].grid)};
  for (std::size_t d = 0; d < 2; ++d) {
    gather.stride[d] = static_cast<int>(axes[d].stride);
    gather.first[d] = static_cast<int>(axes[d].first);
    gather.step[d] = static_cast<int>(axes[d].step);
  }
  return gather;
}

// The result (batch, rows, extent) of a product with what is gathered from `data`, (batch, extent, channels).
struct PixelPass {
  DType dtype;
  std::int64_t batch, rows, channels;
  std::array<std::int64_t, 2> from_extent, to_extent;
  const void* data;
  const void* w;  // element (row, channel, tap): w[row * row_stride + channel * channel_stride + tap]
  std::int64_t row_stride, channel_stride, kernel_width;
  const void* bias;
  void* to;
  void* weights;  // room for weights_bytes
};

void run(const PixelPass& p, const std::array<Axis, 2>& axes) {
  const std::int64_t pixels = p.batch * axes[0].grid * axes[1].grid;
  if (pixels == 0) return;
  const std::int64_t taps = axes[0].taps * axes[1].taps, width = p.to_extent[1];
  const int tile = tile_for(p.rows, pixels);
  const std::int64_t tiles_m = ceil_div(p.rows, kTiles[tile].rows),
                     steps = steps_of(p.dtype, tile, taps, p.channels);
  launch_reorder(
      {.from = static_cast<const char*>(p.w) + (axes[0].tap * p.kernel_width + axes[1].tap) * size(p.dtype),
       .to = p.weights,
       .size = size(p.dtype),
       .rows = static_cast<int>(p.rows),
       .padded_rows = static_cast<int>(tiles_m) * kTiles[tile].rows,
       .depth = static_cast<int>(steps) * kTiles[tile].step(size(p.dtype)),
       .channels = static_cast<int>(p.channels),
       .padded_channels = static_cast<int>(padded(p.channels, p.dtype)),
       .taps = {static_cast<int>(axes[0].taps), static_cast<int>(axes[1].taps)},
       .row_stride = static_cast<int>(p.row_stride),
       .channel_stride = static_cast<int>(p.channel_stride),
       .tap_stride = {static_cast<int>(axes[0].tap_step * p.kernel_width),
                      static_cast<int>(axes[1].tap_step)}});
  void* first = static_cast<char*>(p.to) + (axes[0].to * width + axes[1].to) * size(p.dtype);
  const bool dense = axes[0].to_step == 1 && axes[1].to_step == 1;
  launch_pixels(
      p.dtype, tile,
      {.gather = gather_of(p.data, padded(p.channels, p.dtype), p.from_extent, p.batch, axes),
       .weights = p.weights,
       .bias = p.bias,
       .y = first,
       .rows = static_cast<int>(p.rows),
       .tiles_m = static_cast<int>(tiles_m),
       .steps = static_cast<int>(steps),
       .image_stride = static_cast<int>(p.rows * area(p.to_extent)),
       .channel_stride = static_cast<int>(area(p.to_extent)),
       .row_stride = static_cast<int>(axes[0].to_step * width),
       .col_stride = static_cast<int>(axes[1].to_step),
       .vectors = dense && area(p.to_extent) % 4 == 0 && device::aligned_to(first, 4 * size(p.dtype))});
}

// ---- the weights ----

struct WeightPlan {
  int tile;
  std::int64_t cols, splits, steps_per_split;
};

// Twice the multiprocessors of a large GPU, as long as a split has eight K-steps. A function of the geometry.
WeightPlan weight_plan(DType dtype, const Conv2dGeometry& g) {
  constexpr std::int64_t kBlocks = 216, kFewestSteps = 8, kMostSplits = 64;
  const std::int64_t pixels = g.batch * area(g.output), cols = area(g.kernel) * padded(g.in_channels, dtype);
  const int tile =
      g.out_channels > kTiles[kSmallTile].rows && cols > kTiles[kSmallTile].cols ? kLargeTile : kSmallTile;
  const Tile& t = kTiles[tile];
  const std::int64_t tiles = ceil_div(g.out_channels, t.rows) * ceil_div(cols, t.cols),
                     steps = ceil_div(pixels, t.step(size(dtype)));
  const std::int64_t wanted =
      std::clamp<std::int64_t>(std::min(kBlocks / tiles, steps / kFewestSteps), 1, kMostSplits);
  const std::int64_t steps_per_split = std::max<std::int64_t>(ceil_div(steps, wanted), 1);
  return {tile, cols, std::max<std::int64_t>(ceil_div(steps, steps_per_split), 1), steps_per_split};
}

struct WeightWorkspace {
  char *x, *dout, *partials;
};
WeightWorkspace weight_workspace(DType dtype, const Conv2dGeometry& g, Workspace& workspace) {
  const WeightPlan plan = weight_plan(dtype, g);
  return {workspace.take(channels_last_bytes(dtype, g.batch, g.in_channels, area(g.input))),
          workspace.take(channels_last_bytes(dtype, g.batch, g.out_channels, area(g.output))),
          workspace.take(plan.splits * g.out_channels * plan.cols * 4)};
}

struct PixelWorkspace {
  char *data, *weights;
};
PixelWorkspace forward_workspace(DType dtype, const Conv2dGeometry& g, Workspace& workspace) {
  return {workspace.take(channels_last_bytes(dtype, g.batch, g.in_channels, area(g.input))),
          workspace.take(weights_bytes(dtype, g.out_channels, area(g.kernel), g.in_channels))};
}
PixelWorkspace backward_input_workspace(DType dtype, const Conv2dGeometry& g, Workspace& workspace) {
  return {workspace.take(channels_last_bytes(dtype, g.batch, g.out_channels, area(g.output))),
          workspace.take(weights_bytes(dtype, g.in_channels, area(g.kernel), g.out_channels))};
}

}  // namespace

bool uses_tensor_cores(DType dtype, const Conv2dGeometry& g) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;  // of elements, whose offsets have 32 bits
  if (dtype == DType::f64 || g.groups != 1) return false;
  const std::int64_t inputs = padded(g.in_channels, dtype), outputs = padded(g.out_channels, dtype);
  return inputs <= 4 * g.in_channels && outputs <= 4 * g.out_channels
         && g.batch * inputs * area(g.input) < kLimit && g.batch * outputs * area(g.output) < kLimit
         && weights_bytes(dtype, g.out_channels, area(g.kernel), g.in_channels) < kLimit
         && weights_bytes(dtype, g.in_channels, area(g.kernel), g.out_channels) < kLimit;
}

std::int64_t tensor_core_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& g) {
  Workspace workspace(nullptr);
  if (pass == Conv2dPass::forward) forward_workspace(dtype, g, workspace);
  if (pass == Conv2dPass::backward_input) backward_input_workspace(dtype, g, workspace);
  if (pass == Conv2dPass::backward_weight) weight_workspace(dtype, g, workspace);
  return workspace.bytes();
}

void tensor_core_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                         void* y, void* workspace) {
  Workspace memory(workspace);
  const PixelWorkspace parts = forward_workspace(dtype, g, memory);
  channels_last(dtype, g.batch, g.in_channels, area(g.input), x, parts.data);
  run({.dtype = dtype,
       .batch = g.batch,
       .rows = g.out_channels,
       .channels = g.in_channels,
       .from_extent = g.input,
       .to_extent = g.output,
       .data = parts.data,
       .w = w,
       .row_stride = g.taps(),
       .channel_stride = area(g.kernel),
       .kernel_width = g.kernel[1],
       .bias = bias,
       .to = y,
       .weights = parts.weights},
      {forward_axis(g, 0), forward_axis(g, 1)});
}

void tensor_core_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w,
                                void* dx, void* workspace) {
  Workspace memory(workspace);
  const PixelWorkspace parts = backward_input_workspace(dtype, g, memory);
  channels_last(dtype, g.batch, g.out_channels, area(g.output), dout, parts.data);
  const PixelPass pass{.dtype = dtype,
                       .batch = g.batch,
                       .rows = g.in_channels,
                       .channels = g.out_channels,
                       .from_extent = g.output,
                       .to_extent = g.input,
                       .data = parts.data,
                       .w = w,
                       .row_stride = area(g.kernel),
                       .channel_stride = g.taps(),
                       .kernel_width = g.kernel[1],
                       .bias = nullptr,
                       .to = dx,
                       .weights = parts.weights};
  for (std::int64_t row = 0; row < std::min(g.stride[0], g.input[0]); ++row) {
    for (std::int64_t col = 0; col < std::min(g.stride[1], g.input[1]); ++col) {
      run(pass, {backward_axis(g, 0, row), backward_axis(g, 1, col)});
    }
  }
}

void tensor_core_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout,
                                 void* dw, void* workspace) {
  const WeightPlan plan = weight_plan(dtype, g);
  Workspace memory(workspace);
  const WeightWorkspace parts = weight_workspace(dtype, g, memory);
  channels_last(dtype, g.batch, g.in_channels, area(g.input), x, parts.x);
  channels_last(dtype, g.batch, g.out_channels, area(g.output), dout, parts.dout);
  launch_weight(dtype, plan.tile, static_cast<int>(plan.splits),
                {.gather = gather_of(parts.x, padded(g.in_channels, dtype), g.input, g.batch,
                                     {forward_axis(g, 0), forward_axis(g, 1)}),
                 .dout = parts.dout,
                 .partials = reinterpret_cast<float*>(parts.partials),
                 .channels = static_cast<int>(padded(g.out_channels, dtype)),
                 .rows = static_cast<int>(g.out_channels),
                 .cols = static_cast<int>(plan.cols),
                 .tiles_m = static_cast<int>(ceil_div(g.out_channels, kTiles[plan.tile].rows)),
                 .steps_per_split = static_cast<int>(plan.steps_per_split)});
  launch_sum({.partials = reinterpret_cast<const float*>(parts.partials),
              .dw = dw,
              .dtype = dtype,
              .splits = static_cast<int>(plan.splits),
              .rows = static_cast<int>(g.out_channels),
              .taps = static_cast<int>(area(g.kernel)),
              .channels = static_cast<int>(g.in_channels),
              .padded_channels = static_cast<int>(padded(g.in_channels, dtype))});
}

}  // namespace ergon::kernels::cuda::conv2d_detail
