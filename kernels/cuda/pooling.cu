#include "core/cuda/strided.cuh"
#include "core/cuda/types.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/pooling.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;

// One dimension of the geometry.
struct Axis {
  int input = 0, kernel = 0, output = 0, stride = 1, padding = 0;
  bool count_padding = true;

  Axis(const Pool2dGeometry& g, std::size_t d)
      : input(static_cast<int>(g.input[d])),
        kernel(static_cast<int>(g.kernel[d])),
        output(static_cast<int>(g.output[d])),
        stride(static_cast<int>(g.stride[d])),
        padding(static_cast<int>(g.padding[d])),
        count_padding(g.count_padding) {}

  // Positions [begin, end) of the input that window `i` covers, and how many it counts.
  struct Window {
    int begin, end, counted;
  };
  __device__ __forceinline__ Window window(int i) const {
    const int first = i * stride - padding, last = min(first + kernel, input + padding);
    const int begin = max(first, 0), end = min(last, input);
    return {begin, end, count_padding ? last - first : end - begin};
  }

  // The windows [begin, end) that cover position `at` of the input.
  struct Cover {
    int begin, end;
  };
  __device__ __forceinline__ Cover cover(int at) const {
    const int reach = at + padding;
    return {reach < kernel ? 0 : (reach - kernel) / stride + 1, min(reach / stride + 1, output)};
  }
};

// A thread for each element of (planes, rows, cols).
struct Planes {
  Axis rows, cols;
  FastDivisor row_size, plane_size;  // of what the threads go over
  std::uint32_t elements = 0;

  struct Place {
    std::uint32_t plane;
    int row, col;
  };
  __device__ __forceinline__ Place place(std::uint32_t i) const {
    const std::uint32_t plane = plane_size.divide(i), rest = i - plane * plane_size.divisor;
    const std::uint32_t row = row_size.divide(rest);
    return {plane, static_cast<int>(row), static_cast<int>(rest - row * row_size.divisor)};
  }
  __device__ __forceinline__ std::int64_t input(const Place& at) const {
    return std::int64_t{at.plane} * rows.input * cols.input;
  }
  __device__ __forceinline__ std::int64_t output(const Place& at) const {
    return std::int64_t{at.plane} * rows.output * cols.output;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_forward_kernel(Planes p, const T* x, T* y, std::int32_t* index) {
  using Acc = accumulate_t<T>;
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= p.elements) return;
  const auto at = p.place(i);
  const auto rows = p.rows.window(at.row), cols = p.cols.window(at.col);
  x += p.input(at);
  int best = rows.begin * p.cols.input + cols.begin;
  Acc best_value = convert<Acc>(x[best]);
  for (int r = rows.begin; r < rows.end; ++r) {
    for (int c = cols.begin; c < cols.end; ++c) {
      const Acc value = convert<Acc>(x[r * p.cols.input + c]);
      if (value > best_value || (value != value && best_value == best_value)) {
        best = r * p.cols.input + c;
        best_value = value;
      }
    }
  }
  y[i] = convert<T>(best_value);
  index[i] = best;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_backward_kernel(Planes p, const T* dout, const std::int32_t* index, T* dx) {
  using Acc = accumulate_t<T>;
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= p.elements) return;
  const auto at = p.place(i);
  const auto rows = p.rows.cover(at.row), cols = p.cols.cover(at.col);
  const int self = at.row * p.cols.input + at.col;
  dout += p.output(at);
  index += p.output(at);
  Acc sum = 0;
  for (int r = rows.begin; r < rows.end; ++r) {
    for (int c = cols.begin; c < cols.end; ++c) {
      const int window = r * p.cols.output + c;
      if (index[window] == self) sum += convert<Acc>(dout[window]);
    }
  }
  dx[i] = convert<T>(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) avg_pool2d_forward_kernel(Planes p, const T* x, T* y) {
  using Acc = accumulate_t<T>;
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= p.elements) return;
  const auto at = p.place(i);
  const auto rows = p.rows.window(at.row), cols = p.cols.window(at.col);
  x += p.input(at);
  Acc sum = 0;
  for (int r = rows.begin; r < rows.end; ++r) {
    for (int c = cols.begin; c < cols.end; ++c) sum += convert<Acc>(x[r * p.cols.input + c]);
  }
  y[i] = convert<T>(sum / static_cast<Acc>(rows.counted * cols.counted));
}

template <class T>
__global__ void __launch_bounds__(kThreads) avg_pool2d_backward_kernel(Planes p, const T* dout, T* dx) {
  using Acc = accumulate_t<T>;
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= p.elements) return;
  const auto at = p.place(i);
  const auto rows = p.rows.cover(at.row), cols = p.cols.cover(at.col);
  dout += p.output(at);
  Acc sum = 0;
  for (int r = rows.begin; r < rows.end; ++r) {
    const int height = p.rows.window(r).counted;
    for (int c = cols.begin; c < cols.end; ++c) {
      sum += convert<Acc>(dout[r * p.cols.output + c]) / static_cast<Acc>(height * p.cols.window(c).counted);
    }
  }
  dx[i] = convert<T>(sum);
}

Planes planes_of(const char* op, const Pool2dGeometry& g, const std::array<std::int64_t, 2>& size) {
  const std::int64_t elements = g.planes * size[0] * size[1];
  ERGON_CHECK(elements < std::int64_t{1} << 31,
              "[{}] {} planes of ({}, {}) on cuda: expected fewer than 2^31 elements", op, g.planes, size[0],
              size[1]);
  return {.rows = Axis(g, 0),
          .cols = Axis(g, 1),
          .row_size = FastDivisor(size[1]),
          .plane_size = FastDivisor(size[0] * size[1]),
          .elements = static_cast<std::uint32_t>(elements)};
}

// Calls launch(TypeTag<T>{}, planes, blocks) for a thread an element of (planes, size).
template <class F>
void for_each_element(const char* op, DType dtype, const Pool2dGeometry& g,
                      const std::array<std::int64_t, 2>& size, const F& launch) {
  const Planes planes = planes_of(op, g, size);
  if (planes.elements == 0) return;
  dispatch_floating(dtype, op, [&](auto tag) {
    launch(tag, planes, (planes.elements - 1) / kThreads + 1);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace

void max_pool2d_forward(DType dtype, const Pool2dGeometry& g, const void* x, void* y, std::int32_t* index) {
  for_each_element("max_pool2d", dtype, g, g.output, [&](auto tag, const Planes& planes, unsigned blocks) {
    using T = typename decltype(tag)::type;
    max_pool2d_forward_kernel<<<blocks, kThreads, 0, stream()>>>(planes, static_cast<const T*>(x),
                                                                 static_cast<T*>(y), index);
  });
}

void max_pool2d_backward(DType dtype, const Pool2dGeometry& g, const void* dout, const std::int32_t* index,
                         void* dx) {
  for_each_element("max_pool2d", dtype, g, g.input, [&](auto tag, const Planes& planes, unsigned blocks) {
    using T = typename decltype(tag)::type;
    max_pool2d_backward_kernel<<<blocks, kThreads, 0, stream()>>>(planes, static_cast<const T*>(dout), index,
                                                                  static_cast<T*>(dx));
  });
}

void avg_pool2d_forward(DType dtype, const Pool2dGeometry& g, const void* x, void* y) {
  for_each_element("avg_pool2d", dtype, g, g.output, [&](auto tag, const Planes& planes, unsigned blocks) {
    using T = typename decltype(tag)::type;
    avg_pool2d_forward_kernel<<<blocks, kThreads, 0, stream()>>>(planes, static_cast<const T*>(x),
                                                                 static_cast<T*>(y));
  });
}

void avg_pool2d_backward(DType dtype, const Pool2dGeometry& g, const void* dout, void* dx) {
  for_each_element("avg_pool2d", dtype, g, g.input, [&](auto tag, const Planes& planes, unsigned blocks) {
    using T = typename decltype(tag)::type;
    avg_pool2d_backward_kernel<<<blocks, kThreads, 0, stream()>>>(planes, static_cast<const T*>(dout),
                                                                  static_cast<T*>(dx));
  });
}

}  // namespace ergon::kernels::cuda
