// kernels/swiglu.h on CUDA: a vector of a row a thread.

#include "core/cuda/strided.cuh"
#include "kernels/cuda/common/activations.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/rows.cuh"
#include "kernels/swiglu.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;

// Vectors of all rows, counted row by row.
struct Grid {
  FastDivisor vectors;  // of a row
  std::uint32_t total;
};

// f(row, first column) for the vector of this thread.
template <int kWidth, class F>
__device__ __forceinline__ void for_vector(const Grid& grid, F&& f) {
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= grid.total) return;
  const std::uint32_t row = grid.vectors.divide(i);
  f(row, (i - row * grid.vectors.divisor) * kWidth);
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    swiglu_forward_kernel(Grid grid, Rows<const T> gates, Rows<const T> ups, Rows<T> ys) {
  using Acc = accumulate_t<T>;
  for_vector<kWidth>(grid, [&](std::uint32_t r, std::uint32_t c) {
    auto y = convert_vector<Acc>(load<kWidth>(gates.row(r) + c));
    const auto up = convert_vector<Acc>(load<kWidth>(ups.row(r) + c));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) y[i] = silu(y[i]) * up[i];
    store(ys.row(r) + c, convert_vector<T>(y));
  });
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(Grid grid, Rows<const T> gates, Rows<const T> ups, Rows<const T> douts,
                           Rows<T> dgates, Rows<T> dups) {
  using Acc = accumulate_t<T>;
  for_vector<kWidth>(grid, [&](std::uint32_t r, std::uint32_t c) {
    auto gate = convert_vector<Acc>(load<kWidth>(gates.row(r) + c));
    auto up = convert_vector<Acc>(load<kWidth>(ups.row(r) + c));
    const auto dout = convert_vector<Acc>(load<kWidth>(douts.row(r) + c));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const Acc g = gate[i];
      gate[i] = dout[i] * up[i] * silu_grad(g);
      up[i] = dout[i] * silu(g);
    }
    store(dgates.row(r) + c, convert_vector<T>(gate));
    store(dups.row(r) + c, convert_vector<T>(up));
  });
}

// Calls f(type, width, grid, blocks).
template <class F>
void launch(const SwigluParams& p, std::initializer_list<RowMatrix> operands, F&& f) {
  ERGON_CHECK(p.rows * p.cols < std::int64_t{1} << 31,
              "[swiglu] {} rows of {} elements on cuda: expected fewer than 2^31 elements", p.rows, p.cols);
  if (p.rows == 0 || p.cols == 0) return;
  dispatch_floating(p.gate.dtype, "swiglu", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto with_width = [&](auto width) {
      const std::int64_t vectors = p.cols / width, total = p.rows * vectors;
      f(tag, width, Grid{FastDivisor(vectors), static_cast<std::uint32_t>(total)},
        static_cast<unsigned>((total + kThreads - 1) / kThreads));
      CUDA_CHECK_LAUNCH();
    };
    if (rows_in_vectors(p.cols, sizeof(T), operands)) {
      with_width(std::integral_constant<int, kVectorWidth<T>>{});
    } else {
      with_width(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace

void swiglu_forward(const SwigluParams& p) {
  launch(p, {p.gate, p.up, p.y}, [&](auto tag, auto width, const Grid& grid, unsigned blocks) {
    using T = typename decltype(tag)::type;
    swiglu_forward_kernel<T, decltype(width)::value>
        <<<blocks, kThreads, 0, stream()>>>(grid, Rows<const T>(p.gate), Rows<const T>(p.up), Rows<T>(p.y));
  });
}

void swiglu_backward(const SwigluParams& p) {
  launch(p, {p.gate, p.up, p.dout, p.dgate, p.dup},
         [&](auto tag, auto width, const Grid& grid, unsigned blocks) {
           using T = typename decltype(tag)::type;
           swiglu_backward_kernel<T, decltype(width)::value>
               <<<blocks, kThreads, 0, stream()>>>(grid, Rows<const T>(p.gate), Rows<const T>(p.up),
                                                   Rows<const T>(p.dout), Rows<T>(p.dgate), Rows<T>(p.dup));
         });
}

}  // namespace ergon::kernels::cuda
