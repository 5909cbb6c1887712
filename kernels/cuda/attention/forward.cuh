#pragma once

// The forward on tensor cores: FlashAttention-2's algorithm (Dao 2023, arXiv 2307.08691). docs/attention.md
// explains it.

#include "kernels/cuda/attention/item.cuh"
#include "kernels/cuda/attention/shapes.h"
#include "kernels/cuda/attention/softmax.cuh"
#include "kernels/cuda/attention/tile.cuh"
#include "kernels/cuda/common/launch.h"

namespace ergon::kernels::cuda::attention_detail {

inline constexpr int kFar = 1 << 30;  // further than any window

// A row of a tile: query i of head h. Short queries of the heads that share keys and values lie side by side.
struct RowMap {
  int heads, first_head;
  __device__ __forceinline__ int query(int row) const { return row / heads; }
  __device__ __forceinline__ int head(int row) const { return first_head + row % heads; }
};

// Scores that row `row` does not see become -infinity. In tiles at the edges of what is seen.
template <int kScores>
__device__ __forceinline__ void mask(float (&s)[kScores][4], int half, const Item& item, int query,
                                     int key0) {
  const int first = key0 + static_cast<int>(threadIdx.x) % 4 * 2;
  const int begin = item.first_key(query) - first, end = item.end_key(query) - first;
#pragma unroll
  for (int n = 0; n < kScores; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (8 * n + e < begin || 8 * n + e >= end) s[n][2 * half + e] = -INFINITY;
    }
  }
}

// From products to scores times log2(e), of one query.
template <class T, int kScores>
__device__ __forceinline__ void apply_features(float (&s)[kScores][4], int half, const Arguments& a,
                                               const Item& item, int query, int head, int key0) {
  const Scores<float> scores(a, kDTypeOf<T>, item, head);
  const int first = key0 + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < kScores; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& score = s[n][2 * half + e];
      const int key = first + 8 * n + e;
      score = query < item.queries && item.sees(query, key) ? scores.score(score, query, key) * kLog2E
                                                            : -INFINITY;
    }
  }
}

// Sets what dropout discards to 0, of the queries of a fragment's rows g and g + 8. Two lanes have the four
// keys of a Philox block: each computes one row's block, and they swap halves.
template <int kScores>
__device__ __forceinline__ void drop(float (&s)[kScores][4], const DropoutRow (&rows)[2], int key0) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  const bool odd = t % 2 == 1;
  const DropoutRow mine = odd ? rows[1] : rows[0];
#pragma unroll
  for (int n = 0; n < kScores; ++n) {
    const int block = (key0 + 8 * n) / 4 + t / 2;
    const uint4 words = mine.words(block);
    const std::uint32_t other0 = __shfl_xor_sync(0xffffffffu, odd ? words.x : words.z, 1);
    const std::uint32_t other1 = __shfl_xor_sync(0xffffffffu, odd ? words.y : words.w, 1);
    if (!rows[0].keeps(odd ? other0 : words.x)) s[n][0] = 0;
    if (!rows[0].keeps(odd ? other1 : words.y)) s[n][1] = 0;
    if (!rows[0].keeps(odd ? words.z : other0)) s[n][2] = 0;
    if (!rows[0].keeps(odd ? words.w : other1)) s[n][3] = 0;
  }
}

// The grid: (splits of the keys in each query tile, heads or groups of them, batch). kFeatured: bias, ALiBi,
// softcap, dropout, scales that are not positive, pages, splits, heads side by side; without it, masks and
// packed batches only.
template <class T, int kDim, bool kFeatured>
__global__ void __launch_bounds__(128) attention_forward_mma_kernel(const __grid_constant__ Arguments a) {
  constexpr ForwardShape kShape = forward_shape(kDim, kFeatured);
  constexpr int kF = kShape.fragments, kKeys = kShape.keys, kStages = kShape.stages, kThreads = 128;
  constexpr int kWarpRows = 16 * kF;
  using Queries = Tile<kShape.rows(), kDim>;
  using Keys = Tile<kKeys, kDim>;
  constexpr std::uint32_t kAllStages = kStages * Keys::kBytes;

  extern __shared__ __align__(128) unsigned char shared[];
  const AttentionParams& p = a.params;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int head_dim = static_cast<int>(p.head_dim);
  const int splits = kFeatured ? a.splits : 1, split = kFeatured ? static_cast<int>(blockIdx.x) % splits : 0;
  const RowMap map{kFeatured ? a.heads_per_tile : 1,
                   static_cast<int>(blockIdx.y) * (kFeatured ? a.heads_per_tile : 1)};
  const int hk = map.first_head / a.group;
  Item item(a, static_cast<int>(blockIdx.z));
  const int rows = item.queries * map.heads;
  // The last rows, which see most keys if causal, first.
  const int first_row = static_cast<int>((gridDim.x - 1 - blockIdx.x) / splits) * kShape.rows();
  if (first_row >= rows) return;
  const int last_row = min(first_row + kShape.rows(), rows) - 1;
  // Keys that no query of the block sees are not read: they may hold NaN, and 0 times that would not be 0.
  const int first_key = item.first_key(map.query(first_row));
  item.keys = max(item.end_key(map.query(last_row)), 0);
  int begin = first_key / kKeys, end = (item.keys + kKeys - 1) / kKeys;
  if constexpr (kFeatured) {
    const int tiles_of_split = (max(end - begin, 0) + splits - 1) / splits;
    begin += split * tiles_of_split;
    end = min(end, begin + tiles_of_split);
  }

  const std::uint32_t queries = shared_address(shared), stages = queries + Queries::kBytes;
  const auto data = [](const AttentionOperand& operand) { return static_cast<T*>(operand.data); };
  copy_rows<Queries, kThreads>(queries, 0, rows - first_row, head_dim, [&](int line) {
    return data(p.q) + item.query_row(p.q, map.head(first_row + line), map.query(first_row + line));
  });
  const auto copy_of = [&](const AttentionOperand& operand) {
    const T* const from = kFeatured ? nullptr : data(operand) + item.key_row(operand, hk, begin * kKeys);
    return TileCopy<Keys, kThreads>(from, operand.seqlen_stride);
  };
  TileCopy<Keys, kThreads> copy_k = copy_of(p.k), copy_v = copy_of(p.v);  // without features
  // Tiles of keys and of values take turns in the stages.
  std::uint32_t read_stage = 0;
  const auto next_stage = [](std::uint32_t stage) {
    return stage + Keys::kBytes == kAllStages ? 0 : stage + Keys::kBytes;
  };
  const auto stage_before = [](std::uint32_t stage) {
    return (stage == 0 ? kAllStages : stage) - Keys::kBytes;
  };
  const auto fetch = [&](int tile, std::uint32_t stage, auto values, int first = 0) {
    if (tile < end) {
      if constexpr (kFeatured) {  // pages perhaps
        const AttentionOperand& operand = values ? p.v : p.k;
        copy_rows<Keys, kThreads>(stages + stage, first, item.keys - tile * kKeys, head_dim, [&](int line) {
          return data(operand) + item.cached_row(a, operand, hk, tile * kKeys + line);
        });
      } else {
        (values ? copy_v : copy_k)
            .next(stages + stage, (values ? p.v : p.k).seqlen_stride, first, item.keys - tile * kKeys,
                  head_dim);
      }
    }
    copy_async_commit();
  };

  const int warp_row = first_row + warp * kWarpRows;
  const float scale = kFeatured ? 1.0f : a.exponent_scale;

  const Reader<Queries, true> read_q(queries, warp * kWarpRows);
  const Reader<Keys, false> read_k(stages);
  const Reader<Keys, true> read_v(stages);
  float o[kF][kDim / 8][4] = {};
  RowStatistics statistics[kF];

  unrolled<kStages - 1>([&](auto step) {
    const int tile = begin + step / 2;
    fetch(tile, step * Keys::kBytes, std::bool_constant<step % 2 == 1>{}, first_key - tile * kKeys);
  });
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    const int key0 = tile * kKeys;
    const int last_key = key0 + kKeys - 1;
    // The keys beside the warp's first and last query; a warp without queries is before all keys. Not before
    // the loop, where they would take registers.
    const int first_at = map.query(here(warp_row)) + item.shift;
    const int last_at = warp_row < rows ? map.query(min(warp_row + kWarpRows, rows) - 1) + item.shift : -kFar;
    // Does any of the warp's queries see any of the keys?
    const bool active = key0 - last_at <= item.right && first_at - last_key <= item.left;
    std::uint32_t probabilities[kF][kKeys / 16][4];
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the keys are there, and all warps are done with the stage before theirs
    fetch(tile + (kStages - 1) / 2, stage_before(read_stage), std::bool_constant<kStages % 2 == 0>{});
    if (active) {
      float s[kF][kKeys / 8][4] = {};
      const auto read = read_k.after(read_stage);
      unrolled<kDim / 16>([&](auto d) {
        std::uint32_t q[kF][4];
        read_q.template load<d>(q);
        unrolled<kKeys / 16>([&](auto n) {
          std::uint32_t k[4];
          read.template load<n, d>(k);
#pragma unroll
          for (int f = 0; f < kF; ++f) {
            mma<T>(s[f][2 * n], q[f], k[0], k[1]);
            mma<T>(s[f][2 * n + 1], q[f], k[2], k[3]);
          }
        });
      });
      const bool whole =  // all see all?
          last_at - key0 <= item.left && last_key - first_at <= item.right && last_key < item.keys;
#pragma unroll
      for (int f = 0; f < kF; ++f) {
        const int row = here(warp_row + 16 * f + lane / 4);
        const int query[2] = {map.query(row), map.query(row + 8)};
        if constexpr (kFeatured) {
          apply_features<T>(s[f], 0, a, item, query[0], map.head(row), key0);
          apply_features<T>(s[f], 1, a, item, query[1], map.head(row + 8), key0);
        } else if (!whole) {
          mask(s[f], 0, item, query[0], key0);
          mask(s[f], 1, item, query[1], key0);
        }
        statistics[f].update(s[f], o[f], scale);
        if constexpr (kFeatured) {
          if (a.dropout_threshold > 0) {
            const DropoutRow dropout[2] = {{a, item, map.head(row), query[0]},
                                           {a, item, map.head(row + 8), query[1]}};
            drop(s[f], dropout, key0);
          }
          __syncwarp();  // lanes took different ways, and mma needs them together
        }
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) to_operand<T>(probabilities[f][n], s[f][2 * n], s[f][2 * n + 1]);
      }
    }
    read_stage = next_stage(read_stage);
    copy_async_wait<kStages - 2>();
    __syncthreads();
    fetch(tile + kStages / 2, stage_before(read_stage), std::bool_constant<kStages % 2 == 1>{});
    if (active) {
      const auto read = read_v.after(read_stage);
      unrolled<kKeys / 16>([&](auto n) {
        unrolled<kDim / 16>([&](auto d) {
          std::uint32_t v[4];
          read.template load_transposed<n, d>(v);
#pragma unroll
          for (int f = 0; f < kF; ++f) {
            mma<T>(o[f][2 * d], probabilities[f][n], v[0], v[1]);
            mma<T>(o[f][2 * d + 1], probabilities[f][n], v[2], v[3]);
          }
        });
      });
    }
    read_stage = next_stage(read_stage);
  }
  copy_async_wait<0>();
  __syncthreads();  // the tile of queries becomes one of results

  const Item out(a, here(static_cast<int>(blockIdx.z)));

#pragma unroll
  for (int f = 0; f < kF; ++f) {
    statistics[f].finish();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + 16 * f + 8 * half + lane / 4;
      const float sum = statistics[f].sum[half];
      const float factor = sum > 0 || sum != sum ? a.kept_scale / sum : 0.0f;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        o[f][n][2 * half] *= factor;
        o[f][n][2 * half + 1] *= factor;
      }
      if (row >= rows) continue;
      const std::int64_t statistic = out.statistic(p, map.head(row), map.query(row));
      const float lse = statistics[f].lse(half, scale);
      if (splits > 1) {
        const std::int64_t at = split * a.statistics + statistic;
        if (lane % 4 == 0) a.partial_lse[at] = lse;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          const int d = 8 * n + lane % 4 * 2;
          if (d < head_dim)
            *reinterpret_cast<float2*>(a.partial_o + at * head_dim + d) = {o[f][n][2 * half],
                                                                           o[f][n][2 * half + 1]};
        }
      } else if (p.softmax_lse != nullptr && lane % 4 == 0) {
        static_cast<float*>(p.softmax_lse)[statistic] = lse;
      }
    }
    store_results<T, Queries>(shared, warp * kWarpRows + 16 * f, o[f]);
  }
  if (splits > 1) return;
  __syncwarp();
  write_rows<Queries, kWarpRows>(shared, warp * kWarpRows, rows - first_row, head_dim, [&](int line) {
    return data(p.o) + out.query_row(p.o, map.head(first_row + line), map.query(first_row + line));
  });
}

template <class T, int kDim, bool kFeatured>
void launch_forward_kernel(const Arguments& a) {
  constexpr ForwardShape kShape = forward_shape(kDim, kFeatured);
  const std::int64_t rows = a.params.seqlen_q * a.heads_per_tile;
  const dim3 grid(static_cast<unsigned>((rows + kShape.rows() - 1) / kShape.rows() * a.splits),
                  static_cast<unsigned>(a.params.num_heads / a.heads_per_tile),
                  static_cast<unsigned>(a.params.batch));
  constexpr int kShared = kShape.shared_bytes(kDim);
  allow_shared_memory(attention_forward_mma_kernel<T, kDim, kFeatured>, kShared);
  attention_forward_mma_kernel<T, kDim, kFeatured><<<grid, 128, kShared, stream()>>>(a);
  CUDA_CHECK_LAUNCH();
}

template <class T>
void launch_forward(const Arguments& a) {
  const int dim = padded_dim(a.params.head_dim, a.featured);
  if (a.featured) {
    dim == 64    ? launch_forward_kernel<T, 64, true>(a)
    : dim == 128 ? launch_forward_kernel<T, 128, true>(a)
                 : launch_forward_kernel<T, 256, true>(a);
  } else {
    dim == 32    ? launch_forward_kernel<T, 32, false>(a)
    : dim == 64  ? launch_forward_kernel<T, 64, false>(a)
    : dim == 128 ? launch_forward_kernel<T, 128, false>(a)
                 : launch_forward_kernel<T, 256, false>(a);
  }
}

}  // namespace ergon::kernels::cuda::attention_detail
