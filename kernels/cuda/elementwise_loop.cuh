#pragma once

// The loop under every elementwise kernel: a thread for each vector of the output.

#include <algorithm>
#include <array>

#include "core/cuda/strided.cuh"
#include "core/op_scope.h"
#include "kernels/cuda/common/any_dtype.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/elementwise_ops.cuh"

namespace ergon::kernels::cuda {

constexpr int kElementwiseThreads = 256;

// N operands, the output first, walked in vectors. C: the type that is computed in.
template <int N, class C>
struct ElementwiseOperands {
  device::StridedIndex<N> index;  // of vectors; strides in vectors where an operand is dense
  std::uint32_t vectors = 0;
  std::int64_t elements = 0;  // the last vector is cut off here
  void* data[N] = {};         // null: a number
  DType dtypes[N] = {};
  bool repeated[N] = {};  // one element for a whole vector
  C numbers[N] = {};
};

template <int kWidth, int N, class C, class F, int... inputs>
__device__ __forceinline__ void elementwise_vector(const ElementwiseOperands<N, C>& operands,
                                                   const std::int64_t (&offsets)[N], const F& f,
                                                   std::integer_sequence<int, inputs...>) {
  using namespace device;
  Vector<C, kWidth> values[N];
#pragma unroll
  for (int k = 1; k < N; ++k) {
    if (operands.data[k] != nullptr && !operands.repeated[k]) {
      values[k] = load_as<C, kWidth>(operands.data[k], operands.dtypes[k], offsets[k]);
      continue;
    }
    const C value = operands.data[k] == nullptr
                        ? operands.numbers[k]
                        : load_as<C, 1>(operands.data[k], operands.dtypes[k], offsets[k])[0];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[k][i] = value;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values[0][i] = f(values[inputs + 1][i]...);
  store_as(operands.data[0], operands.dtypes[0], offsets[0], values[0]);
}

template <int kWidth, int N, class C, class F>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_kernel(const __grid_constant__ ElementwiseOperands<N, C> operands, F f) {
  const std::uint32_t i = blockIdx.x * kElementwiseThreads + threadIdx.x;
  if (i >= operands.vectors) return;
  const auto vector_offsets = operands.index.offsets(i);
  std::int64_t offsets[N];
#pragma unroll
  for (int k = 0; k < N; ++k) offsets[k] = vector_offsets[k] * (operands.repeated[k] ? 1 : kWidth);

  constexpr auto kInputs = std::make_integer_sequence<int, N - 1>{};
  const std::int64_t rest = operands.elements - std::int64_t{i} * kWidth;
  if (rest >= kWidth) {
    elementwise_vector<kWidth>(operands, offsets, f, kInputs);
  } else if constexpr (kWidth > 1) {
    for (std::int64_t j = 0; j < rest; ++j) {
      elementwise_vector<1>(operands, offsets, f, kInputs);
#pragma unroll
      for (int k = 0; k < N; ++k) offsets[k] += operands.repeated[k] ? 0 : 1;
    }
  }
}

// --- on the host ---

// The loop's dimensions in the order in which the output lies in memory, merged.
template <int N>
StridedLoop<N> elementwise_loop(const Shape& shape, const std::array<Operand, N>& operands) {
  Dims order;
  for (int dim = 0; dim < shape.size(); ++dim) order.push_back(dim);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return operands[0].strides[static_cast<int>(a)] > operands[0].strides[static_cast<int>(b)];
  });
  Shape sorted;
  std::array<Strides, N> strides;
  for (const std::int64_t dim : order) {
    sorted.push_back(shape[static_cast<int>(dim)]);
    for (std::size_t k = 0; k < N; ++k) strides[k].push_back(operands[k].strides[static_cast<int>(dim)]);
  }
  return merge_dims<N>(sorted, strides);
}

// Elements of a vector: 16 bytes of the widest operand where they all allow it, else 1.
template <int N>
int elementwise_width(const StridedLoop<N>& loop, const std::array<Operand, N>& operands) {
  std::int64_t width = 8;
  for (const Operand& operand : operands) {
    if (operand.is_number) continue;
    if (!device::is_vector_dtype(operand.dtype)) return 1;
    width = std::min(width, 16 / size_of(operand.dtype));
  }
  const int last = loop.shape.size() - 1;
  if (last > 0 && loop.shape[last] % width != 0) return 1;
  for (std::size_t k = 0; k < N; ++k) {
    const Strides& strides = loop.strides[k];
    if (operands[k].is_number || (k > 0 && strides[last] == 0)) continue;
    if (strides[last] != 1 || !device::aligned_to(operands[k].data, width * size_of(operands[k].dtype)))
      return 1;
    for (int dim = 0; dim < last; ++dim) {
      if (strides[dim] % width != 0) return 1;
    }
  }
  return static_cast<int>(width);
}

template <class C, int N>
ElementwiseOperands<N, C> elementwise_operands(StridedLoop<N> loop, const std::array<Operand, N>& operands,
                                               int width) {
  ElementwiseOperands<N, C> result;
  const int last = loop.shape.size() - 1;
  result.elements = numel(loop.shape);
  loop.shape[last] = (loop.shape[last] + width - 1) / width;
  const std::int64_t vectors = numel(loop.shape);
  ERGON_CHECK(vectors < std::int64_t{1} << 31,
              "[{}] {} elements on cuda in vectors of {}: expected fewer than 2^31 vectors",
              OpScope::current(), result.elements, width);
  result.vectors = static_cast<std::uint32_t>(vectors);
  for (std::size_t k = 0; k < N; ++k) {
    const Operand& operand = operands[k];
    result.dtypes[k] = operand.dtype;
    if (operand.is_number) {
      result.numbers[k] = operand.dtype == DType::i64
                              ? static_cast<C>(*static_cast<const std::int64_t*>(operand.data))
                              : static_cast<C>(*static_cast<const double*>(operand.data));
      continue;
    }
    result.data[k] = operand.data;
    result.repeated[k] = loop.strides[k][last] == 0;
    if (result.repeated[k]) continue;
    for (int dim = 0; dim < last; ++dim) loop.strides[k][dim] /= width;
  }
  result.index = device::StridedIndex<N>(loop);
  return result;
}

template <int kWidth, class C, int N, class F>
void launch_elementwise(const StridedLoop<N>& loop, const std::array<Operand, N>& operands, F f) {
  const ElementwiseOperands<N, C> params = elementwise_operands<C, N>(loop, operands, kWidth);
  const unsigned blocks = (params.vectors - 1) / kElementwiseThreads + 1;
  elementwise_kernel<kWidth><<<blocks, kElementwiseThreads, 0, stream()>>>(params, f);
  CUDA_CHECK_LAUNCH();
}

// y = op(inputs), y the first operand. The usual cases have kernels of their own; the others share one.
template <class Op, int N>
void elementwise(Op op, DType compute, const Shape& shape, const std::array<Operand, N>& operands) {
  if (numel(shape) == 0) return;
  const StridedLoop<N> loop = elementwise_loop<N>(shape, operands);
  if (compute == DType::f64) return launch_elementwise<1, double, N>(loop, operands, Chosen<Op>{op});
  if (compute == DType::i64) {
    ERGON_INTERNAL_ASSERT(op < OpList<Op>::kFirstFloating);
    return launch_elementwise<1, std::int64_t, N>(loop, operands, Chosen<Op>{op});
  }
  ERGON_INTERNAL_ASSERT(compute == DType::f32);
  const int width = elementwise_width<N>(loop, operands);
  if (width == 1) return launch_elementwise<1, float, N>(loop, operands, Chosen<Op>{op});
  with_fixed(op, [&](auto fixed) {
    if (width == 4) {
      launch_elementwise<4, float, N>(loop, operands, fixed);
    } else {
      launch_elementwise<8, float, N>(loop, operands, fixed);
    }
  });
}

}  // namespace ergon::kernels::cuda
