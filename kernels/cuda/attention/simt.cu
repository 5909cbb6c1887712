// Attention a tile of query rows and a tile of keys at a time, in fp32 (f64 for f64), with the online softmax
// of Milakov and Gimelshein ("Online normalizer calculation for softmax", arXiv 1805.02867).
//
// A block owns a tile of kTile rows (of queries, or of keys in the gradient of k and v) and walks over the
// tiles of the other side. Four neighbouring threads share a row: for scores they split the columns of the
// tile, for outputs the head's dimensions. Tiles lie in shared memory with an odd row stride, so that threads
// of different rows hit different banks.

#include "kernels/cuda/attention/item.cuh"
#include "kernels/cuda/common/launch.h"

namespace ergon::kernels::cuda::attention_detail {
namespace {

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

template <class Acc>
__device__ void write(void* data, DType dtype, std::int64_t at, Acc value) {
  if constexpr (sizeof(Acc) == 8) {
    static_cast<double*>(data)[at] = value;
  } else {
    switch (dtype) {
      case DType::bf16:
        static_cast<bf16*>(data)[at] = convert<bf16>(value);
        break;
      case DType::f16:
        static_cast<f16*>(data)[at] = convert<f16>(value);
        break;
      default:
        static_cast<float*>(data)[at] = value;
    }
  }
}

// Rows [first, first + kRows) of a head into shared memory, zero beyond `rows`; row_of(i) says where row i
// begins.
template <int kRows, class Acc, class RowOf>
__device__ void load_tile(Acc* tile, const AttentionParams& p, const void* data, int first, int rows,
                          RowOf row_of) {
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  for (int i = threadIdx.x; i < kRows * head_dim; i += kRows * kLanes) {
    const int row = i / head_dim, d = i % head_dim;
    tile[row * stride + d] = first + row < rows ? read<Acc>(data, p.dtype, row_of(first + row) + d) : Acc(0);
  }
}

template <int kRows, class Acc>
__device__ void load_queries(Acc* tile, const AttentionParams& p, const Item& item,
                             const AttentionOperand& operand, int h, int first) {
  load_tile<kRows>(tile, p, operand.data, first, item.queries,
                   [&](int i) { return item.query_row(operand, h, i); });
}
template <int kRows, class Acc>
__device__ void load_keys(Acc* tile, const Arguments& a, const Item& item, const AttentionOperand& operand,
                          int h, int first) {
  load_tile<kRows>(tile, a.params, operand.data, first, item.keys,
                   [&](int j) { return item.cached_row(a, operand, h, j); });
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

template <class Acc>
__device__ Acc kept_scale(const Arguments& a) {
  return static_cast<Acc>(1 / (1 - a.params.dropout_p));
}

// The grid: (query tiles, num_heads, batch).
template <class Acc, int kMaxDim>
__global__ void __launch_bounds__(kThreads<Acc, kMaxDim>)
    attention_forward_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const AttentionParams& p = a.params;
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  Acc* const sq = reinterpret_cast<Acc*>(shared);  // (kRows, stride)
  Acc* const skv = sq + kRows * stride;            // (kRows, stride): keys, then values
  Acc* const sp = skv + kRows * stride;            // (kRows, kRows + 1): probabilities
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int h = blockIdx.y, hk = h / a.group;
  Item item(a, blockIdx.z);
  const int first_row = blockIdx.x * kRows, row = first_row + r;
  if (first_row >= item.queries) return;
  const Scores<Acc> scores(a, p.dtype, item, h);
  const DropoutRow dropout(a, item, h, row);

  load_queries<kRows>(sq, p, item, p.q, h, first_row);
  item.keys = item.end_key(min(first_row + kRows, item.queries) - 1);  // others may hold NaN
  Acc acc[kMaxDim / kLanes] = {};                                      // dimension lane + kLanes * i
  Acc max = -INFINITY, sum = 0;
  for (int key0 = item.first_key(first_row); key0 < item.keys; key0 += kRows) {
    __syncthreads();
    load_keys<kRows>(skv, a, item, p.k, hk, key0);
    __syncthreads();
    Acc score[kRows / kLanes], tile_max = -INFINITY;
#pragma unroll
    for (int c = 0; c < kRows / kLanes; ++c) {
      const int j = lane + kLanes * c;
      score[c] = row < item.queries && item.sees(row, key0 + j)
                     ? scores.score(dot(sq + r * stride, skv + j * stride, head_dim), row, key0 + j)
                     : Acc(-INFINITY);
      tile_max = fmax(tile_max, score[c]);
    }
    tile_max = fmax(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, 1));
    tile_max = fmax(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, 2));
    const Acc new_max = fmax(max, tile_max);
    // Rows that have seen no key yet have no maximum to subtract.
    const Acc shift = new_max == -INFINITY ? Acc(0) : new_max;
    const Acc correction = exp(max - shift);
    Acc tile_sum = 0;
#pragma unroll
    for (int c = 0; c < kRows / kLanes; ++c) {
      const int j = lane + kLanes * c;
      const Acc probability = exp(score[c] - shift);
      sp[r * (kRows + 1) + j] = a.dropout_threshold == 0 || dropout.kept(key0 + j) ? probability : Acc(0);
      tile_sum += probability;
    }
    sum = sum * correction + sum_over_lanes(tile_sum);
    max = new_max;
    __syncthreads();
    load_keys<kRows>(skv, a, item, p.v, hk, key0);
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
  if (row >= item.queries) return;
  const Acc kept = kept_scale<Acc>(a);
  const std::int64_t o = item.query_row(p.o, h, row);
#pragma unroll
  for (int i = 0; i < kMaxDim / kLanes; ++i) {
    const int d = lane + kLanes * i;
    if (d >= head_dim) break;
    write(p.o.data, p.dtype, o + d, sum > 0 || sum != sum ? acc[i] * kept / sum : Acc(0));
  }
  if (lane == 0 && p.softmax_lse != nullptr) {
    const std::int64_t at = item.statistic(p, h, row);
    const double exact = static_cast<double>(max) + static_cast<double>(log(sum));
    const Acc lse = static_cast<Acc>(exact);
    static_cast<Acc*>(p.softmax_lse)[at] = lse;
    if (p.softmax_lse_residual != nullptr)
      p.softmax_lse_residual[at] = sum == 0 ? 0.0f : static_cast<float>(exact - static_cast<double>(lse));
  }
}

// What both backward kernels know of a query.
template <class Acc>
struct Query {
  int row;
  Acc lse, residual, delta;  // delta = dout . o, in all of the row's four threads

  __device__ Query(const AttentionParams& p, const Item& item, int h, int i)
      : row(i), lse(0), residual(0), delta(0) {
    if (i < item.queries) {
      const std::int64_t at = item.statistic(p, h, i);
      lse = static_cast<const Acc*>(p.softmax_lse)[at];
      if (lse == -INFINITY) lse = INFINITY;  // no probability is above 0
      if (p.softmax_lse_residual != nullptr) residual = p.softmax_lse_residual[at];
      const std::int64_t dout = item.query_row(p.dout, h, i), o = item.query_row(p.o, h, i);
      for (int d = threadIdx.x % kLanes; d < p.head_dim; d += kLanes) {
        delta += read<Acc>(p.dout.data, p.dtype, dout + d) * read<Acc>(p.o.data, p.dtype, o + d);
      }
    }
    delta = sum_over_lanes(delta);
  }
};

// What both backward kernels compute of a pair of tiles: d * probabilities into sp, and into sds the gradient
// of the products of q and k.
template <int kRows, class Acc>
__device__ void score_gradients(const Arguments& a, const Item& item, const Scores<Acc>& scores,
                                const DropoutRow& dropout, const Query<Acc>& query, const Acc* sq,
                                const Acc* sdout, const Acc* sk, const Acc* sv, Acc* sp, Acc* sds, int key0) {
  const int head_dim = static_cast<int>(a.params.head_dim), stride = row_stride(head_dim);
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
#pragma unroll
  for (int c = 0; c < kRows / kLanes; ++c) {
    const int j = lane + kLanes * c, key = key0 + j;
    Acc kept_probability = 0, gradient = 0;
    if (query.row < item.queries && item.sees(query.row, key)) {
      const Acc product = dot(sq + r * stride, sk + j * stride, head_dim);
      const Acc probability = exp(scores.score(product, query.row, key) - query.lse - query.residual);
      const Acc factor = a.dropout_threshold == 0 ? Acc(1) : dropout.kept(key) ? kept_scale<Acc>(a) : Acc(0);
      kept_probability = probability * factor;
      gradient = probability * (dot(sdout + r * stride, sv + j * stride, head_dim) * factor - query.delta)
                 * scores.slope_of_cap(product) * scores.scale();
    }
    sp[r * (kRows + 1) + j] = kept_probability;
    sds[r * (kRows + 1) + j] = gradient;
  }
}

// The grid: (query tiles, num_heads, batch).
template <class Acc, int kMaxDim>
__global__ void __launch_bounds__(kThreads<Acc, kMaxDim>)
    attention_backward_q_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const AttentionParams& p = a.params;
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  Acc* const sq = reinterpret_cast<Acc*>(shared);  // (kRows, stride) each
  Acc* const sdout = sq + kRows * stride;
  Acc* const sk = sdout + kRows * stride;
  Acc* const sv = sk + kRows * stride;
  Acc* const sp = sv + kRows * stride;  // (kRows, kRows + 1) each
  Acc* const sds = sp + kRows * (kRows + 1);
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int h = blockIdx.y, hk = h / a.group;
  Item item(a, blockIdx.z);
  const int first_row = blockIdx.x * kRows, row = first_row + r;
  if (first_row >= item.queries) return;
  const Scores<Acc> scores(a, p.dtype, item, h);
  const DropoutRow dropout(a, item, h, row);

  load_queries<kRows>(sq, p, item, p.q, h, first_row);
  load_queries<kRows>(sdout, p, item, p.dout, h, first_row);
  const Query<Acc> query(p, item, h, row);
  item.keys = item.end_key(min(first_row + kRows, item.queries) - 1);  // others may hold NaN
  Acc acc[kMaxDim / kLanes] = {};
  for (int key0 = item.first_key(first_row); key0 < item.keys; key0 += kRows) {
    __syncthreads();
    load_keys<kRows>(sk, a, item, p.k, hk, key0);
    load_keys<kRows>(sv, a, item, p.v, hk, key0);
    __syncthreads();
    score_gradients<kRows>(a, item, scores, dropout, query, sq, sdout, sk, sv, sp, sds, key0);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMaxDim / kLanes; ++i) {
      const int d = lane + kLanes * i;
      if (d >= head_dim) break;
      for (int c = 0; c < kRows; ++c) acc[i] += sds[r * (kRows + 1) + c] * sk[c * stride + d];
    }
  }
  if (row >= item.queries) return;
  const std::int64_t dq = item.query_row(p.dq, h, row);
#pragma unroll
  for (int i = 0; i < kMaxDim / kLanes; ++i) {
    const int d = lane + kLanes * i;
    if (d >= head_dim) break;
    write(p.dq.data, p.dtype, dq + d, acc[i]);
  }
}

// A block goes through the query heads of its key/value head in order. The grid: (key tiles, num_heads_kv,
// batch).
template <class Acc, int kMaxDim>
__global__ void __launch_bounds__(kThreads<Acc, kMaxDim>)
    attention_backward_kv_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const AttentionParams& p = a.params;
  const int head_dim = static_cast<int>(p.head_dim), stride = row_stride(head_dim);
  Acc* const sq = reinterpret_cast<Acc*>(shared);
  Acc* const sdout = sq + kRows * stride;
  Acc* const sk = sdout + kRows * stride;
  Acc* const sv = sk + kRows * stride;
  Acc* const sp = sv + kRows * stride;
  Acc* const sds = sp + kRows * (kRows + 1);
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int hk = blockIdx.y, group = a.group;
  Item item(a, blockIdx.z);
  const int key0 = blockIdx.x * kRows;
  if (key0 >= item.keys) return;

  load_keys<kRows>(sk, a, item, p.k, hk, key0);
  load_keys<kRows>(sv, a, item, p.v, hk, key0);
  const int begin = item.first_query(key0);
  item.queries = item.end_query(min(key0 + kRows, item.keys) - 1);  // others may hold NaN
  Acc dk[kMaxDim / kLanes] = {}, dv[kMaxDim / kLanes] = {};
  for (int h = hk * group; h < (hk + 1) * group; ++h) {
    const Scores<Acc> scores(a, p.dtype, item, h);
    for (int row0 = begin; row0 < item.queries; row0 += kRows) {
      __syncthreads();
      load_queries<kRows>(sq, p, item, p.q, h, row0);
      load_queries<kRows>(sdout, p, item, p.dout, h, row0);
      __syncthreads();
      score_gradients<kRows>(a, item, scores, DropoutRow(a, item, h, row0 + r),
                             Query<Acc>(p, item, h, row0 + r), sq, sdout, sk, sv, sp, sds, key0);
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
  if (key0 + r >= item.keys) return;
  const std::int64_t dk_row = item.key_row(p.dk, hk, key0 + r), dv_row = item.key_row(p.dv, hk, key0 + r);
#pragma unroll
  for (int i = 0; i < kMaxDim / kLanes; ++i) {
    const int d = lane + kLanes * i;
    if (d >= head_dim) break;
    write(p.dk.data, p.dtype, dk_row + d, dk[i]);
    write(p.dv.data, p.dtype, dv_row + d, dv[i]);
  }
}

template <class Acc, int kMaxDim>
void launch(void (*kernel)(Arguments), const Arguments& a, std::int64_t rows, std::int64_t heads, int tiles,
            int score_tiles) {
  if (rows == 0 || heads == 0 || a.params.batch == 0) return;
  constexpr int kRows = kTile<Acc, kMaxDim>;
  const std::int64_t shared = shared_bytes<Acc, kMaxDim>(a.params.head_dim, tiles, score_tiles);
  allow_shared_memory(kernel, shared);
  const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(heads),
                  static_cast<unsigned>(a.params.batch));
  kernel<<<grid, kRows * kLanes, static_cast<std::size_t>(shared), stream()>>>(a);
  CUDA_CHECK_LAUNCH();
}

template <class Acc, int kMaxDim>
void forward(const Arguments& a) {
  launch<Acc, kMaxDim>(attention_forward_kernel<Acc, kMaxDim>, a, a.params.seqlen_q, a.params.num_heads, 2,
                       1);
}

template <class Acc, int kMaxDim>
void backward(const Arguments& a) {
  const AttentionParams& p = a.params;
  launch<Acc, kMaxDim>(attention_backward_q_kernel<Acc, kMaxDim>, a, p.seqlen_q, p.num_heads, 4, 2);
  launch<Acc, kMaxDim>(attention_backward_kv_kernel<Acc, kMaxDim>, a, p.seqlen_k, p.num_heads_kv, 4, 2);
}

}  // namespace

void launch_simt_forward(const Arguments& a) {
  if (a.params.dtype == DType::f64) return forward<double, 256>(a);
  a.params.head_dim <= 64 ? forward<float, 64>(a) : forward<float, 256>(a);
}

void launch_simt_backward(const Arguments& a) {
  if (a.params.dtype == DType::f64) return backward<double, 256>(a);
  a.params.head_dim <= 64 ? backward<float, 64>(a) : backward<float, 256>(a);
}

}  // namespace ergon::kernels::cuda::attention_detail
