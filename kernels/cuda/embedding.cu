// kernels/embedding.h on CUDA. The backward sorts the positions by index, stably, and a warp adds up the run
// of positions that a row of the table has.

#include "core/cuda/index_fault.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/cuda/common/rows.cuh"
#include "kernels/embedding.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

struct Indices {
  const void* data;
  bool wide;  // i64
  std::int64_t vocab;
  ergon::detail::IndexFault* fault;

  explicit Indices(const EmbeddingParams& p)
      : data(p.indices),
        wide(p.index_dtype == DType::i64),
        vocab(p.vocab),
        fault(ergon::detail::index_fault()) {}
  __device__ std::int64_t operator[](std::int64_t i) const {
    return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
  }
  __device__ bool in_range(std::int64_t index) const { return index >= 0 && index < vocab; }
};

// --- forward: element types matter only by their size ---

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) gather_kernel(Indices indices, Rows<const T> weight, Rows<T> y,
                                                          std::int64_t count, std::int64_t vectors) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (i >= count) return;
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t index = indices[i];
  const bool valid = indices.in_range(index);
  if (!valid && lane == 0) {
    raise_index_fault(indices.fault, "[embedding] index", index, 0, indices.vocab, i);
  }
  const T* from = weight.row(valid ? index : 0);
  T* to = y.row(i);
#pragma unroll 4
  for (std::int64_t v = lane; v < vectors; v += kWarpSize) {
    store(to + v * kWidth, valid ? load<kWidth>(from + v * kWidth) : Vector<T, kWidth>{});
  }
}

template <class T>
void gather(const EmbeddingParams& p, const RowMatrix& weight, const RowMatrix& y) {
  const auto blocks = static_cast<unsigned>((p.count + kWarps - 1) / kWarps);
  const auto launch = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    gather_kernel<T, kWidth><<<blocks, kThreads, 0, stream()>>>(Indices(p), Rows<const T>(weight), Rows<T>(y),
                                                                p.count, p.cols / kWidth);
    CUDA_CHECK_LAUNCH();
  };
  if (rows_in_vectors(p.cols, sizeof(T), {weight, y})) {
    launch(std::integral_constant<int, kVectorWidth<T>>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
}

// --- backward: a stable radix sort of (index, position), eight bits at a time ---

using Entry = std::uint64_t;  // index << 32 | position
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;  // one thread for each
constexpr int kTile = 2048;               // entries a block
constexpr int kStrip = kTile / kWarps;    // consecutive ones of a warp
static_assert(kDigits == kThreads);

__device__ int digit_of(Entry entry, int shift) {
  return static_cast<int>(entry >> (32 + shift)) & (kDigits - 1);
}

// Indices out of range become `vocab`: behind all others.
__global__ void __launch_bounds__(kThreads)
    entries_kernel(Indices indices, Entry* entries, std::uint32_t count) {
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t index = indices[i];
  const bool valid = indices.in_range(index);
  if (!valid) raise_index_fault(indices.fault, "[embedding] index", index, 0, indices.vocab, i);
  entries[i] = static_cast<Entry>(valid ? index : indices.vocab) << 32 | i;
}

// How often each digit occurs in the strip of each warp.
__device__ void count_digits(const Entry* entries, std::uint32_t count, int shift,
                             std::uint32_t (&counts)[kWarps][kDigits]) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int d = lane; d < kDigits; d += kWarpSize) counts[warp][d] = 0;
  __syncwarp();
  const std::uint32_t begin = blockIdx.x * kTile + warp * kStrip;
  for (int i = lane; i < kStrip; i += kWarpSize) {
    if (begin + i < count) atomicAdd(&counts[warp][digit_of(entries[begin + i], shift)], 1u);
  }
}

// histogram (digits, tiles)
__global__ void __launch_bounds__(kThreads)
    digit_histogram_kernel(const Entry* entries, std::uint32_t count, int shift, std::uint32_t* histogram) {
  __shared__ std::uint32_t counts[kWarps][kDigits];
  count_digits(entries, count, shift, counts);
  __syncthreads();
  std::uint32_t sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp][threadIdx.x];
  histogram[threadIdx.x * gridDim.x + blockIdx.x] = sum;
}

// values[i] = sum of those before i. One block.
__global__ void __launch_bounds__(1024) exclusive_scan_kernel(std::uint32_t* values, std::uint32_t count) {
  __shared__ std::uint32_t warp_sums[kWarpSize];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  std::uint32_t before = 0;  // sum of the pieces that are done
  for (std::uint32_t begin = 0; begin < count; begin += blockDim.x) {
    const std::uint32_t i = begin + threadIdx.x;
    const std::uint32_t value = i < count ? values[i] : 0;
    std::uint32_t inclusive = value;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const std::uint32_t other = __shfl_up_sync(kFullMask, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
    __syncthreads();
    std::uint32_t of_earlier_warps = 0, total = 0;
    for (int w = 0; w < kWarpSize; ++w) {
      if (w == warp) of_earlier_warps = total;
      total += warp_sums[w];
    }
    if (i < count) values[i] = before + of_earlier_warps + inclusive - value;
    before += total;
    __syncthreads();
  }
}

// Entries to their places: `starts` (digits, tiles) of the digit in the tile, the strips of a tile one after
// the other, in a strip in order.
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const Entry* entries, std::uint32_t count, int shift, const std::uint32_t* starts,
                   Entry* sorted) {
  __shared__ std::uint32_t next[kWarps][kDigits];
  count_digits(entries, count, shift, next);
  __syncthreads();
  std::uint32_t place = starts[threadIdx.x * gridDim.x + blockIdx.x];
  for (int warp = 0; warp < kWarps; ++warp) {
    const std::uint32_t in_strip = next[warp][threadIdx.x];
    next[warp][threadIdx.x] = place;
    place += in_strip;
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const std::uint32_t begin = blockIdx.x * kTile + warp * kStrip;
  for (int i = lane; i < kStrip; i += kWarpSize) {
    const bool inside = begin + i < count;
    const Entry entry = inside ? entries[begin + i] : 0;
    const int digit = digit_of(entry, shift);
    unsigned same = __ballot_sync(kFullMask, inside);  // lanes with this digit
    for (int bit = 0; bit < kDigitBits; ++bit) {
      const bool set = (digit >> bit & 1) != 0;
      const unsigned lanes = __ballot_sync(kFullMask, set);
      same &= set ? lanes : ~lanes;
    }
    const int rank = __popc(same & ((1u << lane) - 1));
    if (inside) sorted[next[warp][digit] + rank] = entry;
    __syncwarp();
    if (inside && rank == 0) next[warp][digit] += __popc(same);
    __syncwarp();
  }
}

// starts[v] = the first of the sorted entries with an index of v or more.
__global__ void __launch_bounds__(kThreads)
    row_starts_kernel(const Entry* sorted, std::uint32_t count, std::uint32_t* starts, std::uint32_t vocab) {
  const std::uint32_t v = blockIdx.x * kThreads + threadIdx.x;
  if (v > vocab) return;
  std::uint32_t low = 0, high = count;
  while (low < high) {
    const std::uint32_t middle = (low + high) / 2;
    if (sorted[middle] >> 32 < v) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[v] = low;
}

// One warp a row of dweight and 32 vectors of columns.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    sum_runs_kernel(const Entry* sorted, const std::uint32_t* starts, Rows<const T> dout, Rows<T> dweight,
                    std::int64_t vocab, std::int64_t vectors) {
  using Acc = accumulate_t<T>;
  const std::int64_t v = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  const std::int64_t vector = std::int64_t{blockIdx.y} * kWarpSize + threadIdx.x % kWarpSize;
  if (v >= vocab || vector >= vectors) return;
  Vector<Acc, kWidth> sum{};
  const std::uint32_t end = starts[v + 1];
#pragma unroll 4
  for (std::uint32_t i = starts[v]; i < end; ++i) {
    const auto position = static_cast<std::uint32_t>(sorted[i]);
    const Vector<T, kWidth> x = load<kWidth>(dout.row(position) + vector * kWidth);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] += convert<Acc>(x[k]);
  }
  store(dweight.row(v) + vector * kWidth, convert_vector<T>(sum));
}

unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// The entries in order, and where those of each row start; both in the workspace.
struct Sorted {
  const Entry* entries;
  const std::uint32_t* starts;
};

Sorted sort_positions(const EmbeddingParams& p, std::int64_t* workspace) {
  const auto count = static_cast<std::uint32_t>(p.count), vocab = static_cast<std::uint32_t>(p.vocab);
  const unsigned tiles = blocks_for(p.count, kTile);
  Entry* from = reinterpret_cast<Entry*>(workspace);
  Entry* to = from + count;
  auto* histogram = reinterpret_cast<std::uint32_t*>(to + count);
  std::uint32_t* starts = histogram + std::size_t{tiles} * kDigits;
  if (count > 0) {
    entries_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream()>>>(Indices(p), from, count);
    CUDA_CHECK_LAUNCH();
    for (int shift = 0; vocab >> shift > 0; shift += kDigitBits) {
      digit_histogram_kernel<<<tiles, kThreads, 0, stream()>>>(from, count, shift, histogram);
      CUDA_CHECK_LAUNCH();
      exclusive_scan_kernel<<<1, 1024, 0, stream()>>>(histogram, tiles * kDigits);
      CUDA_CHECK_LAUNCH();
      scatter_kernel<<<tiles, kThreads, 0, stream()>>>(from, count, shift, histogram, to);
      CUDA_CHECK_LAUNCH();
      std::swap(from, to);
    }
  }
  row_starts_kernel<<<blocks_for(p.vocab + 1, kThreads), kThreads, 0, stream()>>>(from, count, starts, vocab);
  CUDA_CHECK_LAUNCH();
  return {from, starts};
}

template <class T>
void sum_runs(const EmbeddingParams& p, const Sorted& sorted, const RowMatrix& dout,
              const RowMatrix& dweight) {
  const auto launch = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const std::int64_t vectors = p.cols / kWidth;
    const dim3 grid(blocks_for(p.vocab, kWarps), blocks_for(vectors, kWarpSize));
    sum_runs_kernel<T, kWidth><<<grid, kThreads, 0, stream()>>>(
        sorted.entries, sorted.starts, Rows<const T>(dout), Rows<T>(dweight), p.vocab, vectors);
    CUDA_CHECK_LAUNCH();
  };
  if (rows_in_vectors(p.cols, sizeof(T), {dout, dweight})) {
    launch(std::integral_constant<int, kVectorWidth<T>>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
}

void check_sizes(const EmbeddingParams& p) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  ERGON_CHECK(p.vocab < kLimit && p.count < kLimit,
              "[embedding] {} rows of a table of {} on cuda: expected fewer than 2^31 of each", p.count,
              p.vocab);
}

}  // namespace

void embedding_forward(const EmbeddingParams& p, const RowMatrix& weight, const RowMatrix& y) {
  check_sizes(p);
  if (p.count == 0) return;
  switch (size_of(weight.dtype)) {
    case 2:
      return gather<std::uint16_t>(p, weight, y);
    case 4:
      return gather<std::uint32_t>(p, weight, y);
    default:
      return gather<std::uint64_t>(p, weight, y);
  }
}

void embedding_backward(const EmbeddingParams& p, const RowMatrix& dout, const RowMatrix& dweight,
                        std::int64_t* workspace) {
  check_sizes(p);
  if (p.vocab == 0) return;
  const Sorted sorted = sort_positions(p, workspace);
  dispatch_floating(dweight.dtype, "embedding_backward",
                    [&](auto tag) { sum_runs<typename decltype(tag)::type>(p, sorted, dout, dweight); });
}

}  // namespace ergon::kernels::cuda
