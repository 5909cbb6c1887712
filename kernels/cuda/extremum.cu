#include "core/cuda/check.h"
#include "kernels/cuda/common/any_dtype.cuh"
#include "kernels/cuda/common/block_lanes.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/reduce.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

// Does a value found at an index displace another? NaN is the most extreme, of equals the first.
template <bool kLargest, class C>
__device__ __forceinline__ bool displaces(C value, std::uint32_t index, C best, std::uint32_t best_index) {
  const bool beats = kLargest ? value > best : value < best;
  const bool is_nan = value != value, best_is_nan = best != best;
  if (beats || (is_nan && !best_is_nan)) return true;
  return (value == best || (is_nan && best_is_nan)) && index < best_index;
}

struct ExtremumParams {
  DType dtype = DType::f32;
  const void* x = nullptr;
  void* values = nullptr;
  std::int64_t* indices = nullptr;
  std::int64_t results = 0, length = 0, inner = 1;
  BlockLanes lanes{false, 1, 1};
};

template <bool kLargest, class C>
__global__ void __launch_bounds__(kReduceThreads) extremum_kernel(const __grid_constant__ ExtremumParams p) {
  __shared__ C shared_values[kReduceThreads];
  __shared__ std::uint32_t shared_indices[kReduceThreads];
  const BlockLanes& lanes = p.lanes;
  const int lane_count = lanes.lanes(), lane = lanes.lane();
  const std::int64_t first = std::int64_t{blockIdx.x} << lanes.column_bits;
  const std::int64_t result = first + lanes.column();

  C best{};
  std::uint32_t best_index = ~0u;  // none yet
  if (result < p.results) {
    const std::int64_t base = result / p.inner * p.length * p.inner + result % p.inner;
    const auto length = static_cast<std::uint32_t>(p.length);
#pragma unroll 4
    for (std::uint32_t k = lane; k < length; k += lane_count) {
      const C value = load_as<C, 1>(p.x, p.dtype, base + k * p.inner)[0];
      if (best_index == ~0u || displaces<kLargest>(value, k, best, best_index)) best = value, best_index = k;
    }
  }
  shared_values[threadIdx.x] = best;
  shared_indices[threadIdx.x] = best_index;
  for (int half = lane_count / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane >= half) continue;
    const int other = lanes.thread(lanes.column(), lane + half);
    const C value = shared_values[other];
    const std::uint32_t index = shared_indices[other];
    if (index != ~0u && (best_index == ~0u || displaces<kLargest>(value, index, best, best_index))) {
      shared_values[threadIdx.x] = best = value;
      shared_indices[threadIdx.x] = best_index = index;
    }
  }
  __syncthreads();

  // Neighbouring threads write neighbouring results.
  const std::int64_t at = first + threadIdx.x;
  if (threadIdx.x >> lanes.column_bits != 0 || at >= p.results) return;
  const int from = lanes.thread(threadIdx.x, 0);
  p.indices[at] = shared_indices[from];
  if (p.values != nullptr) store_as(p.values, p.dtype, at, Vector<C, 1>{{shared_values[from]}});
}

template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    scatter_along_kernel(T* dx, const T* dy, const std::int64_t* indices, std::int64_t results,
                         std::int64_t length, std::int64_t inner) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kReduceThreads + threadIdx.x;
  if (i < results) dx[(i / inner * length + indices[i]) * inner + i % inner] = dy[i];
}

unsigned blocks_for(std::int64_t results, int per_block) {
  const std::int64_t blocks = (results + per_block - 1) / per_block;
  ERGON_CHECK(blocks < std::int64_t{1} << 31, "[extremum] {} results on cuda: expected fewer", results);
  return static_cast<unsigned>(blocks);
}

}  // namespace

void extremum(ReduceOp op, DType dtype, const void* x, void* values, std::int64_t* indices,
              std::int64_t outer, std::int64_t length, std::int64_t inner) {
  ExtremumParams params{.dtype = dtype,
                        .x = x,
                        .values = values,
                        .indices = indices,
                        .results = outer * inner,
                        .length = length,
                        .inner = inner,
                        .lanes = BlockLanes(inner > 1, outer * inner, length)};
  if (params.results == 0) return;
  const unsigned blocks = blocks_for(params.results, params.lanes.columns());
  const auto launch = [&](auto tag) {
    using C = typename decltype(tag)::type;
    if (op == ReduceOp::max) {
      extremum_kernel<true, C><<<blocks, kReduceThreads, 0, stream()>>>(params);
    } else {
      extremum_kernel<false, C><<<blocks, kReduceThreads, 0, stream()>>>(params);
    }
    CUDA_CHECK_LAUNCH();
  };
  if (dtype == DType::f64) return launch(TypeTag<double>{});
  if (is_floating_point(dtype)) return launch(TypeTag<float>{});
  launch(TypeTag<std::int64_t>{});
}

void scatter_along(std::int64_t element_size, void* dx, const void* dy, const std::int64_t* indices,
                   std::int64_t outer, std::int64_t length, std::int64_t inner) {
  const std::int64_t results = outer * inner;
  if (results == 0) return;
  const auto launch = [&](auto tag) {
    using T = typename decltype(tag)::type;
    scatter_along_kernel<<<blocks_for(results, kReduceThreads), kReduceThreads, 0, stream()>>>(
        static_cast<T*>(dx), static_cast<const T*>(dy), indices, results, length, inner);
    CUDA_CHECK_LAUNCH();
  };
  if (element_size == 2) return launch(TypeTag<std::uint16_t>{});
  if (element_size == 4) return launch(TypeTag<std::uint32_t>{});
  ERGON_INTERNAL_ASSERT(element_size == 8);
  launch(TypeTag<std::uint64_t>{});
}

}  // namespace ergon::kernels::cuda
