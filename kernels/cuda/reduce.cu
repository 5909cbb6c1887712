#include <algorithm>
#include <span>
#include <vector>

#include "core/cuda/strided.cuh"
#include "core/op_scope.h"
#include "kernels/cuda/common/any_dtype.cuh"
#include "kernels/cuda/common/block_lanes.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/reduce.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kGroup = 4;   // vectors that a thread has under way at a time
constexpr int kSteps = 16;  // vectors that a thread reduces: more would let errors grow as in a running total

// One pass over x: what each block reduces goes to y, row-major (chunks, results).
struct ReducePass {
  StridedIndex<1> kept, reduced;  // of vectors, along the one that is dense
  std::uint32_t kept_items = 0, reduced_items = 0;
  std::uint32_t chunk = 0, chunks = 1;  // reduced items of a block
  int width = 1;                        // elements of a vector
  BlockLanes lanes{false, 1, 1};
  const void* x = nullptr;
  DType x_dtype = DType::f32;
  void* y = nullptr;
  DType y_dtype = DType::f32;
  bool stores_vectors = false;
  double divisor = 1;
};

// The threads of a column lie a row of the block apart: a tree in shared memory. Thread t has column t's
// results; those beyond the columns have none.
template <int kWidth, class C, class Op>
__device__ __forceinline__ Vector<C, kWidth> combine_columns(Vector<C, kWidth> sums, const BlockLanes& lanes,
                                                             C (&shared)[kWidth][kReduceThreads]) {
  const Op op;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) shared[i][threadIdx.x] = sums[i];
  for (int half = kReduceThreads / 2; half >= lanes.columns(); half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= half) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      shared[i][threadIdx.x] = sums[i] = op(sums[i], shared[i][threadIdx.x + half]);
    }
  }
  return sums;
}

// The threads of a row are neighbours: warps first, then the warps' values. Thread t has row t's result in
// element 0.
template <int kWidth, class C, class Op>
__device__ __forceinline__ Vector<C, kWidth> combine_rows(Vector<C, kWidth> sums, const BlockLanes& lanes,
                                                          C (&shared)[kReduceThreads]) {
  const Op op;
#pragma unroll
  for (int step = kWidth / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < step; ++i) sums[i] = op(sums[i], sums[i + step]);
  }
  const int in_warp = min(lanes.lane_bits, 5), warps = 1 << (lanes.lane_bits - in_warp);
  for (int offset = (1 << in_warp) / 2; offset > 0; offset /= 2) {
    sums[0] = op(sums[0], __shfl_xor_sync(kFullMask, sums[0], offset));
  }
  if (threadIdx.x % (1 << in_warp) == 0) shared[threadIdx.x >> in_warp] = sums[0];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < lanes.columns()) {
    sums[0] = shared[threadIdx.x * warps];
    for (int i = 1; i < warps; ++i) sums[0] = op(sums[0], shared[threadIdx.x * warps + i]);
  }
  return sums;
}

template <int kWidth, class C, class Op>
__global__ void __launch_bounds__(kReduceThreads) reduce_kernel(const __grid_constant__ ReducePass pass) {
  __shared__ C shared[kWidth][kReduceThreads];
  const BlockLanes& lanes = pass.lanes;
  const Op op;
  const std::uint32_t tile = blockIdx.x / pass.chunks, chunk = blockIdx.x % pass.chunks;
  const int lane_count = lanes.lanes(), lane = lanes.lane();

  Vector<C, kWidth> sums;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[i] = Op::template identity<C>();
  const std::uint32_t item = (tile << lanes.column_bits) + lanes.column();
  if (item < pass.kept_items) {
    const std::int64_t base = pass.kept.offsets(item)[0];
    const std::uint32_t end = min(pass.reduced_items - chunk * pass.chunk, pass.chunk);
    for (std::uint32_t e = lane; e < end; e += kGroup * lane_count) {
      Vector<C, kWidth> group[kGroup];
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const std::uint32_t element = e + k * lane_count;
        if (element < end) {
          const std::int64_t offset = base + pass.reduced.offsets(chunk * pass.chunk + element)[0];
          group[k] = load_as<C, kWidth>(pass.x, pass.x_dtype, offset * kWidth);
        } else {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) group[k][i] = Op::template identity<C>();
        }
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sums[i] = op(sums[i], op(op(group[0][i], group[1][i]), op(group[2][i], group[3][i])));
      }
    }
  }

  Vector<C, kWidth> results = lanes.by_columns ? combine_columns<kWidth, C, Op>(sums, lanes, shared)
                                               : combine_rows<kWidth, C, Op>(sums, lanes, shared[0]);
  // Neighbouring threads have neighbouring results, one for a row, vectors for columns.
  const std::uint32_t result = (tile << lanes.column_bits) + threadIdx.x;
  if (threadIdx.x >> lanes.column_bits != 0 || result >= pass.kept_items) return;
  const int width = lanes.by_columns ? kWidth : 1;
  const std::int64_t at = (std::int64_t{chunk} * pass.kept_items + result) * width;
  if (pass.divisor != 1) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) results[i] = static_cast<C>(results[i] / static_cast<C>(pass.divisor));
  }
  if (width == kWidth && pass.stores_vectors) {
    store_as(pass.y, pass.y_dtype, at, results);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i < width) store_as(pass.y, pass.y_dtype, at + i, Vector<C, 1>{{results[i]}});
    }
  }
}

// --- on the host ---

bool multiples(std::span<const std::int64_t> strides, std::int64_t width) {
  return std::all_of(strides.begin(), strides.end(),
                     [&](std::int64_t stride) { return stride % width == 0; });
}

// Elements of a vector along `dense`, the dimensions that lie closer in memory than those of `other`.
int width_of(const ReduceArgs& args, const StridedLoop<1>& dense, const StridedLoop<1>& other,
             bool by_columns) {
  const DType dtype = args.x.dtype;
  if (args.compute != DType::f32 || !is_vector_dtype(dtype) || dtype == DType::boolean) return 1;
  const std::int64_t width = by_columns ? 4 : 16 / size_of(dtype);
  const Strides& along = dense.strides[0];
  const std::span<const std::int64_t> steps(along.begin(), along.end() - 1);
  const bool fits = along.back() == 1 && dense.shape.back() % width == 0 && multiples(steps, width)
                    && multiples({other.strides[0].begin(), other.strides[0].end()}, width)
                    && aligned_to(args.x.data, width * size_of(dtype));
  return fits ? static_cast<int>(width) : 1;
}

// From elements to vectors; `dense`: its innermost dimension is what they lie along.
void in_vectors(StridedLoop<1>& loop, std::int64_t width, bool dense) {
  if (dense) loop.shape.back() /= width;
  for (int dim = 0; dim < loop.shape.size() - (dense ? 1 : 0); ++dim) loop.strides[0][dim] /= width;
}

StridedLoop<1> merged(const ReduceArgs& args, const std::vector<int>& dims) {
  Shape shape;
  Strides strides;
  for (const int dim : dims) {
    shape.push_back(args.shape[dim]);
    strides.push_back(args.x.strides[dim]);
  }
  return merge_dims<1>(shape, {strides});
}

// How x is cut up: a function of shapes, strides and alignment alone.
ReducePass make_pass(const ReduceArgs& args) {
  std::vector<int> kept_dims, reduced_dims;
  for (int dim = 0; dim < args.shape.size(); ++dim) {
    (args.reduced[static_cast<std::size_t>(dim)] ? reduced_dims : kept_dims).push_back(dim);
  }
  std::stable_sort(reduced_dims.begin(), reduced_dims.end(),
                   [&](int a, int b) { return args.x.strides[a] > args.x.strides[b]; });
  StridedLoop<1> kept = merged(args, kept_dims), reduced = merged(args, reduced_dims);
  const bool by_columns =
      kept.shape.back() > 1
      && (kept.strides[0].back() < reduced.strides[0].back() || numel(reduced.shape) == 1);
  const int width = by_columns ? width_of(args, kept, reduced, true) : width_of(args, reduced, kept, false);
  in_vectors(kept, width, by_columns);
  in_vectors(reduced, width, !by_columns);

  const std::int64_t results = numel(kept.shape), elements = numel(reduced.shape);
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  ERGON_CHECK(results < kLimit && elements < kLimit,
              "[{}] shape {} on cuda: {} results of {} elements: expected fewer than 2^31 of both",
              OpScope::current(), args.shape, results, elements);
  const BlockLanes lanes(by_columns, results, elements);
  const std::int64_t chunk = kSteps * lanes.lanes(),
                     chunks = std::max<std::int64_t>((elements + chunk - 1) / chunk, 1);
  const auto index = [](const StridedLoop<1>& loop) {
    return numel(loop.shape) == 0 ? StridedIndex<1>() : StridedIndex<1>(loop);
  };
  return {.kept = index(kept),
          .reduced = index(reduced),
          .kept_items = static_cast<std::uint32_t>(results),
          .reduced_items = static_cast<std::uint32_t>(elements),
          .chunk = static_cast<std::uint32_t>(chunk),
          .chunks = static_cast<std::uint32_t>(chunks),
          .width = width,
          .lanes = lanes,
          .x = args.x.data,
          .x_dtype = args.x.dtype,
          .y = args.y,
          .y_dtype = args.y_dtype,
          .divisor = args.divisor};
}

// Calls f(pass) for each pass over the data: blocks reduce chunks of x, then chunks of what they have left in
// the workspace, until each result is one chunk. Returns the workspace's elements.
template <class F>
std::int64_t for_each_pass(ReduceArgs args, void* workspace, F f) {
  std::int64_t used = 0;
  for (;;) {
    ReducePass pass = make_pass(args);
    const std::int64_t results = std::int64_t{pass.kept_items} * (pass.lanes.by_columns ? pass.width : 1);
    if (pass.chunks > 1) {
      pass.y = static_cast<char*>(workspace) + used * size_of(args.compute);
      pass.y_dtype = args.compute;
      pass.divisor = 1;
    }
    pass.stores_vectors =
        is_vector_dtype(pass.y_dtype) && aligned_to(pass.y, pass.width * size_of(pass.y_dtype));
    f(pass);
    if (pass.chunks == 1) return used;
    constexpr std::int64_t kAlignment = 4;  // elements: 16 bytes of float
    used += (pass.chunks * results + kAlignment - 1) / kAlignment * kAlignment;
    args.shape = {pass.chunks, results};
    args.reduced = {true};
    args.x = {.data = pass.y, .dtype = args.compute, .strides = {results, 1}};
  }
}

template <int kWidth, class C>
void launch(ReduceOp op, const ReducePass& pass) {
  const std::int64_t tiles = (std::int64_t{pass.kept_items} - 1) / pass.lanes.columns() + 1,
                     blocks = tiles * pass.chunks;
  ERGON_CHECK(blocks < std::int64_t{1} << 31, "[{}] {} blocks on cuda: expected fewer than 2^31",
              OpScope::current(), blocks);
  const auto run = [&](auto functor) {
    reduce_kernel<kWidth, C, decltype(functor)>
        <<<static_cast<unsigned>(blocks), kReduceThreads, 0, stream()>>>(pass);
    CUDA_CHECK_LAUNCH();
  };
  if (op == ReduceOp::sum) return run(Sum{});
  if (op == ReduceOp::max) return run(Max{});
  run(Min{});
}

}  // namespace

std::int64_t reduce_workspace(const ReduceArgs& args) {
  return for_each_pass(args, nullptr, [](const ReducePass&) {});
}

void reduce(const ReduceArgs& args, void* workspace) {
  for_each_pass(args, workspace, [&](const ReducePass& pass) {
    if (pass.kept_items == 0) return;
    if (args.compute == DType::f64) return launch<1, double>(args.op, pass);
    if (args.compute == DType::i64) return launch<1, std::int64_t>(args.op, pass);
    ERGON_INTERNAL_ASSERT(args.compute == DType::f32);
    if (pass.width == 8) return launch<8, float>(args.op, pass);
    if (pass.width == 4) return launch<4, float>(args.op, pass);
    launch<1, float>(args.op, pass);
  });
}

}  // namespace ergon::kernels::cuda
