#include <algorithm>

#include "core/op_scope.h"
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

// What each block finds in its chunk of the length goes to values and indices, row-major (chunks, results).
struct ExtremumPass {
  DType dtype = DType::f32;
  const void* x = nullptr;
  const std::int64_t* places = nullptr;  // the index of each of x's elements; null: where it is in the length
  void* values = nullptr;
  std::int64_t* indices = nullptr;
  std::int64_t results = 0, inner = 1;
  std::uint32_t length = 0, chunk = 0, chunks = 1;
  BlockLanes lanes{false, 1, 1};
};

template <bool kLargest, class C>
__global__ void __launch_bounds__(kReduceThreads) extremum_kernel(const __grid_constant__ ExtremumPass p) {
  __shared__ C shared_values[kReduceThreads];
  __shared__ std::uint32_t shared_indices[kReduceThreads];
  constexpr std::uint32_t kNone = ~0u;
  const BlockLanes& lanes = p.lanes;
  const std::uint32_t tile = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
  const int lane_count = lanes.lanes(), lane = lanes.lane();
  const std::int64_t first = std::int64_t{tile} << lanes.column_bits, result = first + lanes.column();

  C best{};
  std::uint32_t best_index = kNone;
  if (result < p.results) {
    const std::int64_t base = result / p.inner * p.length * p.inner + result % p.inner;
    const std::uint32_t begin = chunk * p.chunk, end = min(begin + p.chunk, p.length);
    constexpr int kUnroll = sizeof(C) == 8 ? 1 : 4;  // what registers hold
#pragma unroll kUnroll
    for (std::uint32_t k = begin + lane; k < end; k += lane_count) {
      const std::int64_t at = base + k * p.inner;
      const C value = load_as<C, 1>(p.x, p.dtype, at)[0];
      const std::uint32_t index = p.places == nullptr ? k : static_cast<std::uint32_t>(p.places[at]);
      if (best_index == kNone || displaces<kLargest>(value, index, best, best_index)) {
        best = value;
        best_index = index;
      }
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
    if (index != kNone && (best_index == kNone || displaces<kLargest>(value, index, best, best_index))) {
      shared_values[threadIdx.x] = best = value;
      shared_indices[threadIdx.x] = best_index = index;
    }
  }
  __syncthreads();

  // Neighbouring threads write neighbouring results.
  if (threadIdx.x >> lanes.column_bits != 0 || first + threadIdx.x >= p.results) return;
  const std::int64_t at = chunk * p.results + first + threadIdx.x;
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
  ERGON_CHECK(blocks < std::int64_t{1} << 31,
              "[{}] {} results on cuda: expected fewer than 2^31 blocks of {}", OpScope::current(), results,
              per_block);
  return static_cast<unsigned>(blocks);
}

// Chunks are for lengths of which few results leave the device idle. What up to 512 of them find is less than
// that again: one chunk.
ExtremumPass make_pass(const ExtremumArgs& args) {
  constexpr std::int64_t kEnoughBlocks = 512, kLeastOfALane = 16;
  const std::int64_t results = args.outer * args.inner;
  const BlockLanes lanes(args.inner > 1, results, args.length);
  const std::int64_t tiles = (results - 1) / lanes.columns() + 1;
  const std::int64_t most = std::max<std::int64_t>(args.length / (lanes.lanes() * kLeastOfALane), 1);
  const std::int64_t wanted = std::clamp<std::int64_t>(kEnoughBlocks / tiles, 1, most);
  const std::int64_t chunk = (args.length + wanted - 1) / wanted;
  return {.dtype = args.dtype,
          .x = args.x,
          .values = args.values,
          .indices = args.indices,
          .results = results,
          .inner = args.inner,
          .length = static_cast<std::uint32_t>(args.length),
          .chunk = static_cast<std::uint32_t>(chunk),
          .chunks = static_cast<std::uint32_t>((args.length + chunk - 1) / chunk),
          .lanes = lanes};
}

void launch(ReduceOp op, const ExtremumPass& pass) {
  const std::int64_t tiles = blocks_for(pass.results, pass.lanes.columns());
  const unsigned blocks = blocks_for(tiles * pass.chunks, 1);
  const auto run = [&](auto tag) {
    using C = typename decltype(tag)::type;
    if (op == ReduceOp::max) {
      extremum_kernel<true, C><<<blocks, kReduceThreads, 0, stream()>>>(pass);
    } else {
      extremum_kernel<false, C><<<blocks, kReduceThreads, 0, stream()>>>(pass);
    }
    CUDA_CHECK_LAUNCH();
  };
  if (pass.dtype == DType::f64) return run(TypeTag<double>{});
  if (is_floating_point(pass.dtype)) return run(TypeTag<float>{});
  run(TypeTag<std::int64_t>{});
}

}  // namespace

std::int64_t extremum_workspace(const ExtremumArgs& args) {
  if (args.outer * args.inner == 0) return 0;
  const ExtremumPass pass = make_pass(args);
  const std::int64_t found = pass.chunks == 1 ? 0 : pass.chunks * pass.results;
  return found * (static_cast<std::int64_t>(sizeof(std::int64_t)) + size_of(args.dtype));
}

void extremum(const ExtremumArgs& args, void* workspace) {
  if (args.outer * args.inner == 0) return;
  ExtremumPass pass = make_pass(args);
  if (pass.chunks > 1) {  // then the chunks' extrema are what is searched
    pass.indices = static_cast<std::int64_t*>(workspace);
    pass.values = pass.indices + pass.chunks * pass.results;
    launch(args.op, pass);
    ExtremumArgs found = args;
    found.x = pass.values;
    found.outer = 1;
    found.length = pass.chunks;
    found.inner = pass.results;
    const std::int64_t* places = pass.indices;
    pass = make_pass(found);
    pass.places = places;
    ERGON_INTERNAL_ASSERT(pass.chunks == 1);
  }
  launch(args.op, pass);
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
