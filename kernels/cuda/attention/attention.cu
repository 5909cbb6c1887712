// Attention a tile of query rows and a tile of keys at a time, in fp32 (f64 for f64), with the online softmax
// of Milakov and Gimelshein ("Online normalizer calculation for softmax", arXiv 1805.02867).
//
// A block owns a tile of kTile rows (of queries, or of keys in the gradient of k and v) and walks over the
// tiles of the other side. Four neighbouring threads share a row: for scores they split the columns of the
// tile, for outputs the head's dimensions. Tiles lie in shared memory with an odd row stride, so that threads
// of different rows hit different banks.

#include "core/cuda/types.cuh"
#include "core/error.h"
#include "kernels/attention.h"
#include "kernels/cuda/common/launch.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kLanes = 4;  // threads of a row

// Rows of a tile, so that the backward's tiles fit into the 99 KiB of shared memory that a block has on every
// GPU since sm_80.
template <class Acc, int kMaxDim>
inline constexpr int kTile = sizeof(Acc) == 8 ? 8
                             : kMaxDim > 64   ? 16
                                              : 32;
template <class Acc, int kMaxDim>
inline constexpr int kThreads = kTile<Acc, kMaxDim>* kLanes;

constexpr std::int64_t row_stride(std::int64_t head_dim) { return head_dim | 1; }

template <class Acc, int kMaxDim>
std::int64_t shared_bytes(std::int64_t head_dim, int tiles, int score_tiles) {
  constexpr int kRows = kTile<Acc, kMaxDim>;
  return static_cast<std::int64_t>(sizeof(Acc)) * kRows
         * (tiles * row_stride(head_dim) + score_tiles * (kRows + 1));
}

// One (batch, head) of an operand.
struct Head {
  char* data;
  std::int64_t seqlen_stride;
};

__device__ Head head_of(const AttentionOperand& operand, DType dtype, std::int64_t b, std::int64_t h) {
  const int size = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
  return {static_cast<char*>(operand.data) + (b * operand.batch_stride + h * operand.head_stride) * size,
          operand.seqlen_stride};
}

template <class Acc>
__device__ Acc read(const Head& head, DType dtype, std::int64_t row, std::int64_t d) {
  const std::int64_t at = row * head.seqlen_stride + d;
  if constexpr (sizeof(Acc) == 8) {
    return reinterpret_cast<const double*>(head.data)[at];
  } else {
    switch (dtype) {
      case DType::bf16:
        return convert<float>(reinterpret_cast<const bf16*>(head.data)[at]);
      case DType::f16:
        return convert<float>(reinterpret_cast<const f16*>(head.data)[at]);
      default:
        return reinterpret_cast<const float*>(head.data)[at];
    }
  }
}

template <class Acc>
__device__ void write(const Head& head, DType dtype, std::int64_t row, std::int64_t d, Acc value) {
  const std::int64_t at = row * head.seqlen_stride + d;
  if constexpr (sizeof(Acc) == 8) {
    reinterpret_cast<double*>(head.data)[at] = value;
  } else {
    switch (dtype) {
      case DType::bf16:
        reinterpret_cast<bf16*>(head.data)[at] = convert<bf16>(value);
        break;
      case DType::f16:
        reinterpret_cast<f16*>(head.data)[at] = convert<f16>(value);
        break;
      default:
        reinterpret_cast<float*>(head.data)[at] = value;
    }
  }
}

// Rows [first, first + kRows) of a head into shared memory; zero beyond `rows`.
template <int kRows, class Acc>
__device__ void load_tile(Acc* tile, const Head& head, DType dtype, std::int64_t first, std::int64_t rows,
                          int head_dim) {
  const int stride = row_stride(head_dim);
  for (int i = threadIdx.x; i < kRows * head_dim; i += kRows * kLanes) {
    const int row = i / head_dim, d = i % head_dim;
    tile[row * stride + d] = first + row < rows ? read<Acc>(head, dtype, first + row, d) : Acc(0);
  }
}

template <class Acc>
__device__ Acc dot(const Acc* a, const Acc* b, int head_dim) {
  Acc sum = 0;
  for (int d = 0; d < head_dim; ++d) sum += a[d] * b[d];
  return sum;
}

template <class Acc>
__device__ Acc sum_over_lanes(Acc value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// The first key that query `row` does not see.
__device__ std::int64_t end_of_keys(const AttentionParams& p, std::int64_t row) {
  if (!p.causal) return p.seqlen_k;
  const std::int64_t end = row + 1 + p.seqlen_k - p.seqlen_q;
  return end < 0 ? 0 : end < p.seqlen_k ? end : p.seqlen_k;
}

// The grid: (query tiles, num_heads, batch).
template <class Acc, int kMaxDim>
__global__ void __launch_bounds__(kThreads<Acc, kMaxDim>) attention_forward_kernel(AttentionParams p) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  Acc* const sq = reinterpret_cast<Acc*>(shared);  // (kRows, stride)
  Acc* const skv = sq + kRows * stride;            // (kRows, stride): keys, then values
  Acc* const sp = skv + kRows * stride;            // (kRows, kRows + 1): probabilities
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const std::int64_t h = blockIdx.y, b = blockIdx.z, hk = h / (p.num_heads / p.num_heads_kv);
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kRows, row = first_row + r;
  const Head k = head_of(p.k, p.dtype, b, hk), v = head_of(p.v, p.dtype, b, hk);

  load_tile<kRows>(sq, head_of(p.q, p.dtype, b, h), p.dtype, first_row, p.seqlen_q, head_dim);
  const std::int64_t keys = end_of_keys(p, row);
  const std::int64_t last_row = first_row + kRows < p.seqlen_q ? first_row + kRows : p.seqlen_q;
  const std::int64_t all_keys = end_of_keys(p, last_row - 1);  // of the tile's last row: the most
  const Acc scale = static_cast<Acc>(p.softmax_scale);

  Acc acc[kMaxDim / kLanes] = {};  // dimension lane + kLanes * i
  Acc max = -INFINITY, sum = 0;
  for (std::int64_t key0 = 0; key0 < all_keys; key0 += kRows) {
    __syncthreads();
    load_tile<kRows>(skv, k, p.dtype, key0, p.seqlen_k, head_dim);
    __syncthreads();
    Acc score[kRows / kLanes], tile_max = -INFINITY;
#pragma unroll
    for (int j = 0; j < kRows / kLanes; ++j) {
      const int c = lane + kLanes * j;
      score[j] = key0 + c < keys ? dot(sq + r * stride, skv + c * stride, head_dim) * scale : Acc(-INFINITY);
      tile_max = fmax(tile_max, score[j]);
    }
    tile_max = fmax(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, 1));
    tile_max = fmax(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, 2));
    const Acc new_max = fmax(max, tile_max);
    // Rows that have seen no key yet have no maximum to subtract.
    const Acc shift = new_max == -INFINITY ? Acc(0) : new_max;
    const Acc correction = exp(max - shift);
    Acc tile_sum = 0;
#pragma unroll
    for (int j = 0; j < kRows / kLanes; ++j) {
      const Acc probability = exp(score[j] - shift);
      sp[r * (kRows + 1) + lane + kLanes * j] = probability;
      tile_sum += probability;
    }
    sum = sum * correction + sum_over_lanes(tile_sum);
    max = new_max;
    __syncthreads();
    load_tile<kRows>(skv, v, p.dtype, key0, p.seqlen_k, head_dim);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMaxDim / kLanes; ++i) {
      const int d = lane + kLanes * i;
      if (d >= head_dim) break;
      Acc partial = 0;
      for (int c = 0; c < kRows; ++c) partial += sp[r * (kRows + 1) + c] * skv[c * stride + d];
      acc[i] = acc[i] * correction + partial;
    }
  }
  if (row >= p.seqlen_q) return;
  const Head o = head_of(p.o, p.dtype, b, h);
#pragma unroll
  for (int i = 0; i < kMaxDim / kLanes; ++i) {
    const int d = lane + kLanes * i;
    if (d >= head_dim) break;
    write(o, p.dtype, row, d, sum > 0 || sum != sum ? acc[i] / sum : Acc(0));
  }
  if (lane == 0 && p.softmax_lse != nullptr) {
    static_cast<Acc*>(p.softmax_lse)[(b * p.num_heads + h) * p.seqlen_q + row] = max + log(sum);
  }
}

// What both backward kernels compute of a pair of tiles: probabilities into sp, and into sds the gradient of
// the scores, p * (dout . v - delta) * scale, delta = dout . o.
template <int kRows, class Acc>
__device__ void score_gradients(const AttentionParams& p, const Acc* sq, const Acc* sdout, const Acc* sk,
                                const Acc* sv, Acc* sp, Acc* sds, std::int64_t row, std::int64_t key0,
                                Acc lse, Acc delta) {
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const std::int64_t keys = row < p.seqlen_q ? end_of_keys(p, row) : 0;
  const Acc scale = static_cast<Acc>(p.softmax_scale);
#pragma unroll
  for (int j = 0; j < kRows / kLanes; ++j) {
    const int c = lane + kLanes * j;
    Acc probability = 0, gradient = 0;
    if (key0 + c < keys) {
      probability = exp(dot(sq + r * stride, sk + c * stride, head_dim) * scale - lse);
      gradient = probability * (dot(sdout + r * stride, sv + c * stride, head_dim) - delta) * scale;
    }
    sp[r * (kRows + 1) + c] = probability;
    sds[r * (kRows + 1) + c] = gradient;
  }
}

// dout . o of the thread's row, in all of its four threads.
template <class Acc>
__device__ Acc row_delta(const AttentionParams& p, std::int64_t b, std::int64_t h, std::int64_t row) {
  Acc sum = 0;
  if (row < p.seqlen_q) {
    const Head dout = head_of(p.dout, p.dtype, b, h), o = head_of(p.o, p.dtype, b, h);
    for (std::int64_t d = threadIdx.x % kLanes; d < p.head_dim; d += kLanes) {
      sum += read<Acc>(dout, p.dtype, row, d) * read<Acc>(o, p.dtype, row, d);
    }
  }
  return sum_over_lanes(sum);
}

template <class Acc>
__device__ Acc row_lse(const AttentionParams& p, std::int64_t b, std::int64_t h, std::int64_t row) {
  if (row >= p.seqlen_q) return 0;
  return static_cast<const Acc*>(p.softmax_lse)[(b * p.num_heads + h) * p.seqlen_q + row];
}

// The grid: (query tiles, num_heads, batch).
template <class Acc, int kMaxDim>
__global__ void __launch_bounds__(kThreads<Acc, kMaxDim>) attention_backward_q_kernel(AttentionParams p) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  Acc* const sq = reinterpret_cast<Acc*>(shared);  // (kRows, stride) each
  Acc* const sdout = sq + kRows * stride;
  Acc* const sk = sdout + kRows * stride;
  Acc* const sv = sk + kRows * stride;
  Acc* const sp = sv + kRows * stride;  // (kRows, kRows + 1) each
  Acc* const sds = sp + kRows * (kRows + 1);
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const std::int64_t h = blockIdx.y, b = blockIdx.z, hk = h / (p.num_heads / p.num_heads_kv);
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kRows, row = first_row + r;

  load_tile<kRows>(sq, head_of(p.q, p.dtype, b, h), p.dtype, first_row, p.seqlen_q, head_dim);
  load_tile<kRows>(sdout, head_of(p.dout, p.dtype, b, h), p.dtype, first_row, p.seqlen_q, head_dim);
  const Acc delta = row_delta<Acc>(p, b, h, row), lse = row_lse<Acc>(p, b, h, row);
  const std::int64_t last_row = first_row + kRows < p.seqlen_q ? first_row + kRows : p.seqlen_q;
  const std::int64_t all_keys = end_of_keys(p, last_row - 1);
  Acc acc[kMaxDim / kLanes] = {};
  for (std::int64_t key0 = 0; key0 < all_keys; key0 += kRows) {
    __syncthreads();
    load_tile<kRows>(sk, head_of(p.k, p.dtype, b, hk), p.dtype, key0, p.seqlen_k, head_dim);
    load_tile<kRows>(sv, head_of(p.v, p.dtype, b, hk), p.dtype, key0, p.seqlen_k, head_dim);
    __syncthreads();
    score_gradients<kRows>(p, sq, sdout, sk, sv, sp, sds, row, key0, lse, delta);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMaxDim / kLanes; ++i) {
      const int d = lane + kLanes * i;
      if (d >= head_dim) break;
      for (int c = 0; c < kRows; ++c) acc[i] += sds[r * (kRows + 1) + c] * sk[c * stride + d];
    }
  }
  if (row >= p.seqlen_q) return;
  const Head dq = head_of(p.dq, p.dtype, b, h);
#pragma unroll
  for (int i = 0; i < kMaxDim / kLanes; ++i) {
    const int d = lane + kLanes * i;
    if (d >= head_dim) break;
    write(dq, p.dtype, row, d, acc[i]);
  }
}

// A block goes through the query heads of its key/value head in order. The grid: (key tiles, num_heads_kv,
// batch).
template <class Acc, int kMaxDim>
__global__ void __launch_bounds__(kThreads<Acc, kMaxDim>) attention_backward_kv_kernel(AttentionParams p) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  Acc* const sq = reinterpret_cast<Acc*>(shared);
  Acc* const sdout = sq + kRows * stride;
  Acc* const sk = sdout + kRows * stride;
  Acc* const sv = sk + kRows * stride;
  Acc* const sp = sv + kRows * stride;
  Acc* const sds = sp + kRows * (kRows + 1);
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const std::int64_t hk = blockIdx.y, b = blockIdx.z, group = p.num_heads / p.num_heads_kv;
  const std::int64_t key0 = std::int64_t{blockIdx.x} * kRows;

  load_tile<kRows>(sk, head_of(p.k, p.dtype, b, hk), p.dtype, key0, p.seqlen_k, head_dim);
  load_tile<kRows>(sv, head_of(p.v, p.dtype, b, hk), p.dtype, key0, p.seqlen_k, head_dim);
  // The first query row that sees the tile's first key.
  const std::int64_t seen_from = p.causal ? key0 - (p.seqlen_k - p.seqlen_q) : 0;
  const std::int64_t first_tile = seen_from > 0 ? seen_from / kRows * kRows : 0;
  Acc dk[kMaxDim / kLanes] = {}, dv[kMaxDim / kLanes] = {};
  for (std::int64_t h = hk * group; h < (hk + 1) * group; ++h) {
    for (std::int64_t row0 = first_tile; row0 < p.seqlen_q; row0 += kRows) {
      __syncthreads();
      load_tile<kRows>(sq, head_of(p.q, p.dtype, b, h), p.dtype, row0, p.seqlen_q, head_dim);
      load_tile<kRows>(sdout, head_of(p.dout, p.dtype, b, h), p.dtype, row0, p.seqlen_q, head_dim);
      __syncthreads();
      score_gradients<kRows>(p, sq, sdout, sk, sv, sp, sds, row0 + r, key0, row_lse<Acc>(p, b, h, row0 + r),
                             row_delta<Acc>(p, b, h, row0 + r));
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kMaxDim / kLanes; ++i) {
        const int d = lane + kLanes * i;
        if (d >= head_dim) break;
        for (int q = 0; q < kRows; ++q) {
          dv[i] += sp[q * (kRows + 1) + r] * sdout[q * stride + d];
          dk[i] += sds[q * (kRows + 1) + r] * sq[q * stride + d];
        }
      }
    }
  }
  if (key0 + r >= p.seqlen_k) return;
  const Head dk_head = head_of(p.dk, p.dtype, b, hk), dv_head = head_of(p.dv, p.dtype, b, hk);
#pragma unroll
  for (int i = 0; i < kMaxDim / kLanes; ++i) {
    const int d = lane + kLanes * i;
    if (d >= head_dim) break;
    write(dk_head, p.dtype, key0 + r, d, dk[i]);
    write(dv_head, p.dtype, key0 + r, d, dv[i]);
  }
}

void check(const AttentionParams& p) {
  ERGON_CHECK(p.head_dim <= 256, "[attention] head_dim {} on cuda: expected at most 256", p.head_dim);
  ERGON_CHECK(p.batch <= 65535 && p.num_heads <= 65535,
              "[attention] batch {} and {} heads on cuda: expected at most 65535 of each", p.batch,
              p.num_heads);
}

template <class Acc, int kMaxDim>
void launch(void (*kernel)(AttentionParams), const AttentionParams& p, std::int64_t rows, std::int64_t heads,
            int tiles, int score_tiles) {
  if (rows == 0 || heads == 0 || p.batch == 0) return;
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const std::int64_t shared = shared_bytes<Acc, kMaxDim>(p.head_dim, tiles, score_tiles);
  allow_shared_memory(kernel, shared);
  const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(heads),
                  static_cast<unsigned>(p.batch));
  kernel<<<grid, kRows * kLanes, static_cast<std::size_t>(shared), stream()>>>(p);
  CUDA_CHECK_LAUNCH();
}

template <class Acc, int kMaxDim>
void forward(const AttentionParams& p) {
  launch<Acc, kMaxDim>(attention_forward_kernel<Acc, kMaxDim>, p, p.seqlen_q, p.num_heads, 2, 1);
}

template <class Acc, int kMaxDim>
void backward(const AttentionParams& p) {
  launch<Acc, kMaxDim>(attention_backward_q_kernel<Acc, kMaxDim>, p, p.seqlen_q, p.num_heads, 4, 2);
  launch<Acc, kMaxDim>(attention_backward_kv_kernel<Acc, kMaxDim>, p, p.seqlen_k, p.num_heads_kv, 4, 2);
}

}  // namespace

std::int64_t attention_forward_workspace(const AttentionParams&) { return 0; }
std::int64_t attention_backward_workspace(const AttentionParams&) { return 0; }

void attention_forward(const AttentionParams& p) {
  check(p);
  if (p.dtype == DType::f64) return forward<double, 256>(p);
  p.head_dim <= 64 ? forward<float, 64>(p) : forward<float, 256>(p);
}

void attention_backward(const AttentionParams& p) {
  check(p);
  if (p.dtype == DType::f64) return backward<double, 256>(p);
  p.head_dim <= 64 ? backward<float, 64>(p) : backward<float, 256>(p);
}

}  // namespace ergon::kernels::cuda
