// Implicit GEMM without tensor cores: C (M, N) = A (M, K) B (K, N), the elements of A and B computed from
// their positions. Each pass is a struct that says what these are:
//
//                     M               N                        K
//   forward           outputs         pixels of y              (inputs, kernel)
//   backward input    inputs          pixels of dx             (outputs, kernel)
//   backward weight   outputs         (inputs, kernel)         pixels of y, in splits
//
// inputs and outputs: channels of one group; pixels: of all images.

#include <algorithm>

#include "core/cuda/strided.cuh"
#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/conv2d/simt.h"

namespace ergon::kernels::cuda::conv2d_detail {
namespace {

using namespace device;

// Conv2dGeometry for the device.
struct Geometry {
  int in_channels, out_channels, group_inputs, group_outputs;
  int input[2], output[2], stride[2], padding[2], dilation[2];
  int taps;                         // group_inputs * kernel_area
  int input_pixels, output_pixels;  // of all images
  FastDivisor kernel_area, kernel_width;
  FastDivisor input_area, input_width;
  FastDivisor output_area, output_width;
  FastDivisor strides[2];

  explicit Geometry(const Conv2dGeometry& g)
      : in_channels(static_cast<int>(g.in_channels)),
        out_channels(static_cast<int>(g.out_channels)),
        group_inputs(static_cast<int>(g.group_inputs())),
        group_outputs(static_cast<int>(g.group_outputs())),
        taps(static_cast<int>(g.taps())),
        input_pixels(static_cast<int>(g.batch * g.input[0] * g.input[1])),
        output_pixels(static_cast<int>(g.batch * g.output[0] * g.output[1])),
        kernel_area(g.kernel[0] * g.kernel[1]),
        kernel_width(g.kernel[1]),
        input_area(g.input[0] * g.input[1]),
        input_width(g.input[1]),
        output_area(g.output[0] * g.output[1]),
        output_width(g.output[1]),
        strides{FastDivisor(g.stride[0]), FastDivisor(g.stride[1])} {
    for (int d = 0; d < 2; ++d) {
      input[d] = static_cast<int>(g.input[d]);
      output[d] = static_cast<int>(g.output[d]);
      stride[d] = static_cast<int>(g.stride[d]);
      padding[d] = static_cast<int>(g.padding[d]);
      dilation[d] = static_cast<int>(g.dilation[d]);
    }
  }
};

constexpr int kThreads = 256;
constexpr int kTile = 64;   // rows and columns of C of a block; 4 x 4 of a thread
constexpr int kDepth = 16;  // of a step
constexpr int kPitch = kTile + 4;
constexpr int kLoads = kTile * kDepth / kThreads;

// A channel and a position of the kernel.
struct Tap {
  int channel, index, row, col;
  __device__ __forceinline__ Tap(const Geometry& g, int k) {
    channel = static_cast<int>(g.kernel_area.divide(k));
    index = k - channel * static_cast<int>(g.kernel_area.divisor);
    row = static_cast<int>(g.kernel_width.divide(index));
    col = index - row * static_cast<int>(g.kernel_width.divisor);
  }
};

// A pixel of y or of x: `index` within the plane.
struct Pixel {
  int image, index, row, col;
  __device__ __forceinline__ Pixel(const FastDivisor& area, const FastDivisor& width, int pixel) {
    image = static_cast<int>(area.divide(pixel));
    index = pixel - image * static_cast<int>(area.divisor);
    row = static_cast<int>(width.divide(index));
    col = index - row * static_cast<int>(width.divisor);
  }
};

template <class T>
struct Operands {
  const T* x = nullptr;
  const T* w = nullptr;
  const T* bias = nullptr;
  const T* dout = nullptr;
  T* result = nullptr;                  // y or dx
  accumulate_t<T>* partials = nullptr;  // (splits, out_channels, taps)
};

// What x contributes to output pixel p through tap t.
template <class T>
__device__ __forceinline__ T input_of(const Geometry& g, const T* x, int group, const Pixel& p,
                                      const Tap& t) {
  const int row = p.row * g.stride[0] - g.padding[0] + t.row * g.dilation[0];
  const int col = p.col * g.stride[1] - g.padding[1] + t.col * g.dilation[1];
  if (row < 0 || row >= g.input[0] || col < 0 || col >= g.input[1]) return convert<T>(0.0f);
  return x[((p.image * g.in_channels + group * g.group_inputs + t.channel) * g.input[0] + row) * g.input[1]
           + col];
}

// Neighbouring threads load elements that are neighbours in memory: along depth, or along the line.
template <class T>
struct Forward {
  static constexpr bool kAlongDepthA = true, kAlongDepthB = false;

  __device__ static int rows(const Geometry& g) { return g.group_outputs; }
  __device__ static int cols(const Geometry& g) { return g.output_pixels; }
  __device__ static int depth(const Geometry& g) { return g.taps; }
  __device__ static T a(const Geometry& g, const Operands<T>& o, int group, int row, int k) {
    return o.w[(group * g.group_outputs + row) * g.taps + k];
  }
  __device__ static T b(const Geometry& g, const Operands<T>& o, int group, int col, int k) {
    return input_of(g, o.x, group, Pixel(g.output_area, g.output_width, col), Tap(g, k));
  }
  __device__ static void store(const Geometry& g, const Operands<T>& o, int group, int /*split*/, int row,
                               int col, accumulate_t<T> sum) {
    const Pixel p(g.output_area, g.output_width, col);
    const int channel = group * g.group_outputs + row;
    if (o.bias != nullptr) sum += convert<accumulate_t<T>>(o.bias[channel]);
    o.result[(p.image * g.out_channels + channel) * static_cast<int>(g.output_area.divisor) + p.index] =
        convert<T>(sum);
  }
};

template <class T>
struct BackwardInput {
  static constexpr bool kAlongDepthA = true, kAlongDepthB = false;

  __device__ static int rows(const Geometry& g) { return g.group_inputs; }
  __device__ static int cols(const Geometry& g) { return g.input_pixels; }
  __device__ static int depth(const Geometry& g) {
    return g.group_outputs * static_cast<int>(g.kernel_area.divisor);
  }
  __device__ static T a(const Geometry& g, const Operands<T>& o, int group, int row, int k) {
    const Tap t(g, k);
    return o.w[((group * g.group_outputs + t.channel) * g.group_inputs + row)
                   * static_cast<int>(g.kernel_area.divisor)
               + t.index];
  }
  // dout where tap t of it reads the pixel of x, if there is such a place.
  __device__ static T b(const Geometry& g, const Operands<T>& o, int group, int col, int k) {
    const Pixel p(g.input_area, g.input_width, col);
    const Tap t(g, k);
    const int row = p.row + g.padding[0] - t.row * g.dilation[0];
    const int column = p.col + g.padding[1] - t.col * g.dilation[1];
    if (row < 0 || column < 0) return convert<T>(0.0f);
    const int i = static_cast<int>(g.strides[0].divide(row)),
              j = static_cast<int>(g.strides[1].divide(column));
    if (i * g.stride[0] != row || j * g.stride[1] != column || i >= g.output[0] || j >= g.output[1])
      return convert<T>(0.0f);
    return o.dout[((p.image * g.out_channels + group * g.group_outputs + t.channel) * g.output[0] + i)
                      * g.output[1]
                  + j];
  }
  __device__ static void store(const Geometry& g, const Operands<T>& o, int group, int /*split*/, int row,
                               int col, accumulate_t<T> sum) {
    const Pixel p(g.input_area, g.input_width, col);
    const int channel = group * g.group_inputs + row;
    o.result[(p.image * g.in_channels + channel) * static_cast<int>(g.input_area.divisor) + p.index] =
        convert<T>(sum);
  }
};

template <class T>
struct BackwardWeight {
  static constexpr bool kAlongDepthA = true, kAlongDepthB = true;

  __device__ static int rows(const Geometry& g) { return g.group_outputs; }
  __device__ static int cols(const Geometry& g) { return g.taps; }
  __device__ static int depth(const Geometry& g) { return g.output_pixels; }
  __device__ static T a(const Geometry& g, const Operands<T>& o, int group, int row, int k) {
    const Pixel p(g.output_area, g.output_width, k);
    return o.dout[(p.image * g.out_channels + group * g.group_outputs + row)
                      * static_cast<int>(g.output_area.divisor)
                  + p.index];
  }
  __device__ static T b(const Geometry& g, const Operands<T>& o, int group, int col, int k) {
    return input_of(g, o.x, group, Pixel(g.output_area, g.output_width, k), Tap(g, col));
  }
  __device__ static void store(const Geometry& g, const Operands<T>& o, int group, int split, int row,
                               int col, accumulate_t<T> sum) {
    const int channel = group * g.group_outputs + row;
    o.partials[(static_cast<std::int64_t>(split) * g.out_channels + channel) * g.taps + col] = sum;
  }
};

// One operand's step on its way into shared memory, through registers.
template <class T, bool kAlongDepth>
struct Step {
  T elements[kLoads];

  __device__ static int line(int i) {
    return kAlongDepth ? threadIdx.x / kDepth + kThreads / kDepth * i : threadIdx.x % kTile;
  }
  __device__ static int depth(int i) {
    return kAlongDepth ? threadIdx.x % kDepth : threadIdx.x / kTile + kThreads / kTile * i;
  }
  // element(line, k) of the lines before `lines` and depths before `end`
  template <class F>
  __device__ __forceinline__ void load(int first_line, int lines, int k, int end, const F& element) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const bool there = first_line + line(i) < lines && k + depth(i) < end;
      elements[i] = there ? element(first_line + line(i), k + depth(i)) : convert<T>(0.0f);
    }
  }
  __device__ __forceinline__ void store(accumulate_t<T> (&tile)[kDepth][kPitch]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) tile[depth(i)][line(i)] = convert<accumulate_t<T>>(elements[i]);
  }
};

// The grid: (column tiles, row tiles, groups * splits).
template <class T, template <class> class Pass>
__global__ void __launch_bounds__(kThreads)
    implicit_gemm_kernel(const __grid_constant__ Geometry g, const Operands<T> operands, int splits) {
  using Acc = accumulate_t<T>;
  using P = Pass<T>;
  __shared__ __align__(16) Acc a_tile[kDepth][kPitch], b_tile[kDepth][kPitch];
  const int row0 = blockIdx.y * kTile, col0 = blockIdx.x * kTile;
  const int group = blockIdx.z / splits, split = blockIdx.z % splits;
  const int rows = P::rows(g), cols = P::cols(g), depth = P::depth(g);
  const int steps = (depth + kDepth - 1) / kDepth, per_split = (steps + splits - 1) / splits;
  const int begin = split * per_split * kDepth, end = min(depth, begin + per_split * kDepth);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;

  Step<T, P::kAlongDepthA> a;
  Step<T, P::kAlongDepthB> b;
  const auto load_step = [&](int k) {
    a.load(row0, rows, k, end, [&](int row, int d) { return P::a(g, operands, group, row, d); });
    b.load(col0, cols, k, end, [&](int col, int d) { return P::b(g, operands, group, col, d); });
  };
  Acc sums[4][4] = {};
  load_step(begin);
  for (int k = begin; k < end; k += kDepth) {
    a.store(a_tile);
    b.store(b_tile);
    __syncthreads();
    if (k + kDepth < end) load_step(k + kDepth);  // under way while this step is multiplied
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const Vector<Acc, 4> left = load<4>(&a_tile[d][4 * ty]), right = load<4>(&b_tile[d][4 * tx]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += left[i] * right[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = row0 + 4 * ty + i, col = col0 + 4 * tx + j;
      if (row < rows && col < cols) P::store(g, operands, group, split, row, col, sums[i][j]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_splits_kernel(const accumulate_t<T>* partials, T* dw, int elements, int splits) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= elements) return;
  accumulate_t<T> sum = 0;
  for (int s = 0; s < splits; ++s) sum += partials[static_cast<std::int64_t>(s) * elements + i];
  dw[i] = convert<T>(sum);
}

template <class T, template <class> class Pass>
void launch(const Conv2dGeometry& geometry, std::int64_t rows, std::int64_t cols, int splits,
            const Operands<T>& operands) {
  if (rows == 0 || cols == 0) return;
  const dim3 grid(static_cast<unsigned>((cols + kTile - 1) / kTile),
                  static_cast<unsigned>((rows + kTile - 1) / kTile),
                  static_cast<unsigned>(geometry.groups * splits));
  ERGON_CHECK(grid.y <= 65535 && geometry.groups * splits <= 65535,
              "[conv2d] {} output channels in {} groups on cuda: too many for one launch",
              geometry.out_channels, geometry.groups);
  implicit_gemm_kernel<T, Pass><<<grid, kThreads, 0, stream()>>>(Geometry(geometry), operands, splits);
  CUDA_CHECK_LAUNCH();
}

// Parts of the sum over all pixels, each of which one block adds up: enough to fill a large GPU twice, as
// long as each has 256 products for every element.
int weight_splits(const Conv2dGeometry& g) {
  const std::int64_t tiles =
      g.groups * ((g.group_outputs() + kTile - 1) / kTile) * ((g.taps() + kTile - 1) / kTile);
  const std::int64_t pixels = g.batch * g.output[0] * g.output[1];
  return static_cast<int>(std::clamp<std::int64_t>(std::min(256 / tiles, pixels / 256), 1, 128));
}

}  // namespace

std::int64_t simt_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& g) {
  if (pass != Conv2dPass::backward_weight) return 0;
  return weight_splits(g) * g.out_channels * g.taps() * (dtype == DType::f64 ? 8 : 4);
}

void simt_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                  void* y) {
  dispatch_floating(dtype, "conv2d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch<T, Forward>(g, g.group_outputs(), g.batch * g.output[0] * g.output[1], 1,
                       {.x = static_cast<const T*>(x),
                        .w = static_cast<const T*>(w),
                        .bias = static_cast<const T*>(bias),
                        .result = static_cast<T*>(y)});
  });
}

void simt_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w, void* dx) {
  dispatch_floating(dtype, "conv2d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch<T, BackwardInput>(
        g, g.group_inputs(), g.batch * g.input[0] * g.input[1], 1,
        {.w = static_cast<const T*>(w), .dout = static_cast<const T*>(dout), .result = static_cast<T*>(dx)});
  });
}

void simt_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout, void* dw,
                          void* workspace) {
  dispatch_floating(dtype, "conv2d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    const int splits = weight_splits(g);
    const int elements = static_cast<int>(g.out_channels * g.taps());
    launch<T, BackwardWeight>(g, g.group_outputs(), g.taps(), splits,
                              {.x = static_cast<const T*>(x),
                               .dout = static_cast<const T*>(dout),
                               .partials = static_cast<Acc*>(workspace)});
    sum_splits_kernel<<<static_cast<unsigned>((elements + kThreads - 1) / kThreads), kThreads, 0, stream()>>>(
        static_cast<const Acc*>(workspace), static_cast<T*>(dw), elements, splits);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace ergon::kernels::cuda::conv2d_detail
