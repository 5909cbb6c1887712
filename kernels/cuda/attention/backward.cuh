#pragma once

// The backward on tensor cores. A block owns a tile of keys and goes through the queries that see them; each
// warp owns some of the keys, so that probabilities and their gradients, transposed (keys, queries), become
// operands of the products for dv and dk in registers. docs/attention.md explains it.

#include "core/cuda/vector.cuh"
#include "kernels/cuda/attention/item.cuh"
#include "kernels/cuda/attention/shapes.h"
#include "kernels/cuda/attention/softmax.cuh"
#include "kernels/cuda/attention/tile.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"

namespace ergon::kernels::cuda::attention_detail {

// Where the sums for dq of a head's rows are, 16 rows (a fragment) after 16 rows; within a fragment as mma
// has them: (columns / 8, 4, lane). Items begin at a multiple of 32 rows.
__device__ __forceinline__ float* query_sums(const Arguments& a, const Item& item, int split, int h, int i,
                                             int dim) {
  const std::int64_t first =
      a.params.cu_seqlens_q != nullptr ? item.first_q : here(item.index) * a.params.seqlen_q;
  const std::int64_t fragment = h * a.query_fragments + (first / 32 + item.index) * 2 + i / 16;
  return a.query_sums + split * a.split_stride + fragment * 16 * dim;
}

// Which of a fragment's (keys g and g + 8, queries 2t and 2t + 1) dropout keeps, a bit for each: 2 * (key
// half) + (query). Four lanes have the four keys of a Philox block; each computes one of four blocks, and
// they pass words around.
__device__ __forceinline__ unsigned kept_bits(const Arguments& a, const Item& item, int h, int query,
                                              int key) {
  const int lane = static_cast<int>(threadIdx.x) % 32, mine = lane / 4 % 4;
  const DropoutRow row(a, item, h, query + mine % 2);
  const uint4 words = row.words((key + 8 * (mine / 2) + lane / 16 * 4) / 4);
  unsigned bits = 0;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int other = mine ^ r;
    const std::uint32_t send =
        other < 2 ? (other == 0 ? words.x : words.y) : (other == 2 ? words.z : words.w);
    bits |= static_cast<unsigned>(row.keeps(__shfl_xor_sync(0xffffffffu, send, 4 * r))) << other;
  }
  return bits;
}

// The grid: (splits, key/value heads, batch); split s takes key tiles s, s + splits, ...
template <class T, int kDim, bool kFeatured>
__global__ void __launch_bounds__(backward_shape(kDim).threads())
    attention_backward_mma_kernel(const __grid_constant__ Arguments a) {
  constexpr BackwardShape kShape = backward_shape(kDim);
  constexpr int kKeys = kShape.keys(), kQueries = kShape.queries;
  constexpr int kThreads = kShape.threads(), kColumns = kDim / kShape.halves;
  // Of dq, each warp's part.
  constexpr int kSumColumns = kDim / kShape.warps < 16 ? 16 : kDim / kShape.warps;
  constexpr int kSumWarps = kDim / kSumColumns, kSumF = kQueries / 16 * kSumWarps / kShape.warps;
  using Keys = Tile<kKeys, kDim>;
  using Queries = Tile<kQueries, kDim>;
  using Gradients = Tile<kKeys, kQueries>;
  constexpr std::uint32_t kStage = 2 * Queries::kBytes;                      // q and dout
  static_assert(Gradients::kBytes <= kStage && Keys::kBytes <= 2 * kStage);  // they take their places

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const staged = shared + 2 * Keys::kBytes;
  const float2* const statistics = reinterpret_cast<const float2*>(staged + 2 * kStage);
  const std::uint32_t sk = shared_address(shared), sv = sk + Keys::kBytes, stages = sv + Keys::kBytes;

  const AttentionParams& p = a.params;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int head_dim = static_cast<int>(p.head_dim);
  const int hk = static_cast<int>(blockIdx.y);
  const auto data = [](const AttentionOperand& operand) { return static_cast<T*>(operand.data); };
  const int warp_line = warp / kShape.halves * 16, half_chunk = warp % kShape.halves * (kColumns / 8);
  const float scale = kFeatured ? 1.0f : a.exponent_scale;

  const Reader<Keys, true> read_k(sk, warp_line);
  const Reader<Queries, false> read_q(stages);
  const Reader<Queries, true> read_q_across(stages, 0, half_chunk);
  const Reader<Gradients, false> read_gradients(stages, 0, warp / kSumWarps * kSumF * 2);
  const Reader<Keys, true> read_k_across(sk, 0, warp % kSumWarps * (kSumColumns / 8));

#pragma unroll 1
  for (int key0 = static_cast<int>(blockIdx.x) * kKeys;; key0 += static_cast<int>(gridDim.x) * kKeys) {
    Item item(a, here(static_cast<int>(blockIdx.z)));
    if (key0 >= item.keys) break;
    // Keys that no query sees and queries that see none of the block's keys are not read: they may hold NaN,
    // and 0 times that would not be 0.
    const int first_key = item.first_key(0), first_query = item.first_query(key0);
    item.queries = max(item.end_query(min(key0 + kKeys, item.keys) - 1), 0);
    const int begin = first_query / kQueries, end = (item.queries + kQueries - 1) / kQueries;
    const auto copy_keys = [&](std::uint32_t tile, const AttentionOperand& operand) {
      copy_rows<Keys, kThreads>(tile, first_key - key0, item.keys - key0, head_dim, [&](int line) {
        return data(operand) + item.key_row(operand, hk, key0 + line);
      });
    };
    // q, dout and statistics of a tile of queries.
    const auto fetch = [&](int h, int tile, std::uint32_t stage) {
      if (begin < end && h < (hk + 1) * a.group) {
        const int i0 = tile * kQueries;
        Item of_fetch = item;
        of_fetch.index = here(item.index);
        const auto copy_queries = [&](std::uint32_t to, const AttentionOperand& operand) {
          copy_rows<Queries, kThreads>(to, first_query - i0, item.queries - i0, head_dim, [&](int line) {
            return data(operand) + of_fetch.query_row(operand, h, i0 + line);
          });
        };
        copy_queries(stages + stage, p.q);
        copy_queries(stages + stage + Queries::kBytes, p.dout);
        if (const int i = static_cast<int>(threadIdx.x); i < kQueries) {
          const bool valid = i0 + i < item.queries;
          copy_async<8>(shared_address(statistics + (stage == 0 ? 0 : kQueries) + i),
                        a.query_statistics + (valid ? of_fetch.statistic(p, h, i0 + i) : 0), valid ? 8 : 0);
        }
      }
      copy_async_commit();
    };
    __syncthreads();  // all have written the tile before
    if (begin < end) copy_keys(sk, p.k), copy_keys(sv, p.v);
    fetch(hk * a.group, begin, 0);

    float dk[kColumns / 8][4] = {}, dv[kColumns / 8][4] = {};
    std::uint32_t stage = 0;
    const int warp_key = key0 + warp_line, warp_last = warp_key + 15;
#pragma unroll 1
    for (int h = hk * a.group; h < (hk + 1) * a.group; ++h) {
#pragma unroll 1
      for (int tile = begin; tile < end; ++tile) {
        const int query0 = tile * kQueries, last_query = query0 + kQueries - 1;
        copy_async_wait<0>();
        __syncthreads();
        fetch(tile + 1 < end ? h : h + 1, tile + 1 < end ? tile + 1 : begin, stage ^ kStage);
        __syncwarp();  // lanes took different ways, and ldmatrix needs them together
        const bool active = warp_key < item.keys && warp_key - (last_query + item.shift) <= item.right
                            && query0 + item.shift - warp_last <= item.left;
        float ds[kQueries / 8][4] = {};
        if (active) {
          float s[kQueries / 8][4] = {};
          const auto keys = read_k.after(here(0));
          const auto queries = read_q.after(stage);
          unrolled<kDim / 16>([&](auto d) {
            std::uint32_t k[4], v[4];
            keys.template load<0, d>(k);
            keys.template load<0, d, Keys::kBytes>(v);
            unrolled<kQueries / 16>([&](auto n) {
              std::uint32_t q[4], dout[4];
              queries.template load<n, d>(q);
              queries.template load<n, d, Queries::kBytes>(dout);
              mma<T>(s[2 * n], k, q[0], q[1]);
              mma<T>(s[2 * n + 1], k, q[2], q[3]);
              mma<T>(ds[2 * n], v, dout[0], dout[1]);
              mma<T>(ds[2 * n + 1], v, dout[2], dout[3]);
            });
          });
          // From products to probabilities (s) and gradients of the scores (ds).
          const bool whole = warp_last - (query0 + item.shift) <= item.right
                             && last_query + item.shift - warp_key <= item.left && warp_last < item.keys;
          const float2* const of_tile = statistics + (stage == 0 ? 0 : kQueries);
          const int head = here(h);
#pragma unroll
          for (int n = 0; n < kQueries / 8; ++n) {
            const int i = 8 * n + lane % 4 * 2;  // of the tile
            const float4 both = *reinterpret_cast<const float4*>(of_tile + i);
            const float lse[2] = {both.x, both.z}, delta[2] = {both.y, both.w};
            unsigned kept = 0xf;
            if constexpr (kFeatured) {
              if (a.dropout_threshold > 0) kept = kept_bits(a, item, head, query0 + i, warp_key);
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int query = query0 + i + e % 2, key = warp_key + lane / 4 + e / 2 * 8;
              float score = s[n][e], slope = 1, dp = ds[n][e];
              if constexpr (kFeatured) {
                const Scores<float> scores(a, kDTypeOf<T>, item, head);
                slope = scores.slope_of_cap(score);
                score = query < item.queries && item.sees(query, key)
                            ? scores.score(score, query, key) * kLog2E
                            : -INFINITY;
                dp = kept >> e & 1 ? dp * a.kept_scale : 0.0f;
              }
              const float probability = exp2_approx(score * scale - lse[e % 2]);
              ds[n][e] = probability * (dp - delta[e % 2]) * slope;
              s[n][e] = kept >> e & 1 ? probability : 0.0f;
              if (!whole && !item.sees(query, key)) s[n][e] = ds[n][e] = 0;  // whatever is NaN
            }
          }
          if constexpr (kFeatured) __syncwarp();  // lanes took different ways, and mma needs them together
          const auto queries_across = read_q_across.after(stage);
          unrolled<kQueries / 16>([&](auto n) {
            std::uint32_t of_p[4], of_ds[4];
            to_operand<T>(of_p, s[2 * n], s[2 * n + 1]);
            to_operand<T>(of_ds, ds[2 * n], ds[2 * n + 1]);
            unrolled<kColumns / 16>([&](auto d) {
              std::uint32_t q[4], dout[4];
              queries_across.template load_transposed<n, d, Queries::kBytes>(dout);
              queries_across.template load_transposed<n, d>(q);
              mma<T>(dv[2 * d], of_p, dout[0], dout[1]);
              mma<T>(dv[2 * d + 1], of_p, dout[2], dout[3]);
              mma<T>(dk[2 * d], of_ds, q[0], q[1]);
              mma<T>(dk[2 * d + 1], of_ds, q[2], q[3]);
            });
          });
        }
        __syncthreads();  // ds takes the place of q and dout
        if (half_chunk == 0) store_results<T, Gradients>(staged + stage, here(warp_line), ds);
        __syncthreads();

        // This warp's part of dq += ds k, over all keys of the tile.
        const auto gradients = read_gradients.after(stage);
        const auto keys_across = read_k_across.after(here(0));
        float dq[kSumF][kSumColumns / 8][4] = {};
        unrolled<kKeys / 16>([&](auto k) {
          std::uint32_t of_ds[kSumF][4];
          unrolled<kSumF>([&](auto f) { gradients.template load_transposed<k, f>(of_ds[f]); });
          unrolled<kSumColumns / 16>([&](auto d) {
            std::uint32_t keys[4];
            keys_across.template load_transposed<k, d>(keys);
#pragma unroll
            for (int f = 0; f < kSumF; ++f) {
              mma<T>(dq[f][2 * d], of_ds[f], keys[0], keys[1]);
              mma<T>(dq[f][2 * d + 1], of_ds[f], keys[2], keys[3]);
            }
          });
        });
        const int sum_query = here(query0 + warp / kSumWarps * kSumF * 16);
        float* to = query_sums(a, item, a.splits > 1 ? static_cast<int>(blockIdx.x) : 0, h, sum_query, kDim)
                    + warp % kSumWarps * kSumColumns * 16 + lane;
#pragma unroll
        for (int f = 0; f < kSumF; ++f) {
          if (sum_query + 16 * f >= item.queries) break;
#pragma unroll
          for (int n = 0; n < kSumColumns / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) atomicAdd(to + (4 * n + e) * 32, dq[f][n][e]);
          }
          to += 16 * kDim;
        }
        stage ^= kStage;
      }
    }

    copy_async_wait<0>();
    __syncthreads();  // keys become dk, the stages dv
    const Item out(a, here(static_cast<int>(blockIdx.z)));
    const int line = here(warp_line);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        dk[n][e] *= static_cast<float>(p.softmax_scale);
        dv[n][e] *= a.kept_scale;
      }
    }
    store_results<T, Keys>(shared, line, dk, half_chunk);
    store_results<T, Keys>(staged, line, dv, half_chunk);
    __syncthreads();
    constexpr int kRowsEach = kKeys / kShape.warps;
    const auto write = [&](const unsigned char* tile, const AttentionOperand& operand) {
      write_rows<Keys, kRowsEach>(tile, warp * kRowsEach, out.keys - key0, head_dim, [&](int line) {
        return data(operand) + out.key_row(operand, hk, key0 + line);
      });
    };
    write(shared, p.dk);
    write(staged, p.dv);
  }
}

// dq from its sums, split after split. A warp for 16 rows of a head; the grid: (rows / 64, num_heads, batch).
template <class T, int kDim>
__global__ void __launch_bounds__(128) attention_query_gradient_kernel(const __grid_constant__ Arguments a) {
  using Rows = Tile<64, kDim>;
  extern __shared__ __align__(128) unsigned char shared[];
  const AttentionParams& p = a.params;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int h = static_cast<int>(blockIdx.y);
  const Item item(a, static_cast<int>(blockIdx.z));
  const int first_row = static_cast<int>(blockIdx.x) * 64, row = first_row + 16 * warp;
  if (row >= item.queries) return;
  const float* const from = query_sums(a, item, 0, h, row, kDim) + lane;
  float dq[kDim / 8][4] = {};
#pragma unroll 1
  for (int split = 0; split < a.splits; ++split) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[n][e] += from[split * a.split_stride + (4 * n + e) * 32];
    }
  }
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) dq[n][e] *= static_cast<float>(p.softmax_scale);
  }
  store_results<T, Rows>(shared, 16 * warp, dq);
  __syncwarp();
  write_rows<Rows, 16>(
      shared, 16 * warp, item.queries - first_row, static_cast<int>(p.head_dim),
      [&](int line) { return static_cast<T*>(p.dq.data) + item.query_row(p.dq, h, first_row + line); });
}

// softmax_lse * log2(e) and delta = sum(dout * o) of each query. A block for 32 rows, which its warps take in
// turns; the grid: (rows / 32, num_heads, batch).
template <class T>
__global__ void __launch_bounds__(128)
    attention_query_statistics_kernel(const __grid_constant__ Arguments a) {
  const AttentionParams& p = a.params;
  const int lane = static_cast<int>(threadIdx.x) % 32, h = static_cast<int>(blockIdx.y);
  const Item item(a, static_cast<int>(blockIdx.z));
  const int first = static_cast<int>(blockIdx.x) * 32, rows = min(item.queries - first, 32);
  __shared__ float deltas[32];
  for (int row = static_cast<int>(threadIdx.x) / 32; row < rows; row += 4) {
    const int i = first + row;
    float delta = 0;
    if (8 * lane < p.head_dim) {
      const auto dout = load<8>(static_cast<const T*>(p.dout.data) + item.query_row(p.dout, h, i) + 8 * lane);
      const auto o = load<8>(static_cast<const T*>(p.o.data) + item.query_row(p.o, h, i) + 8 * lane);
#pragma unroll
      for (int e = 0; e < 8; ++e) delta += convert<float>(dout[e]) * convert<float>(o[e]);
    }
    delta = warp_reduce<Sum>(delta);
    if (lane == 0) deltas[row] = delta;
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row >= rows) return;
  const std::int64_t at = item.statistic(p, h, first + row);
  const float lse = static_cast<const float*>(p.softmax_lse)[at];
  // A query that sees no key: no probability is above 0.
  a.query_statistics[at] = {lse == -INFINITY ? INFINITY : lse * kLog2E, deltas[row]};
}

template <class T, int kDim, bool kFeatured>
void launch_backward_kernel(const Arguments& a) {
  constexpr BackwardShape kShape = backward_shape(kDim);
  const AttentionParams& p = a.params;
  const dim3 grid(static_cast<unsigned>(a.key_blocks), static_cast<unsigned>(p.num_heads_kv),
                  static_cast<unsigned>(p.batch));
  constexpr int kShared = kShape.shared_bytes(kDim);
  allow_shared_memory(attention_backward_mma_kernel<T, kDim, kFeatured>, kShared);
  attention_backward_mma_kernel<T, kDim, kFeatured><<<grid, kShape.threads(), kShared, stream()>>>(a);
  CUDA_CHECK_LAUNCH();
}

template <class T, int kDim>
void launch_backward_kernels(const Arguments& a) {
  const AttentionParams& p = a.params;
  const auto grid = [&](std::int64_t rows) {
    return dim3(static_cast<unsigned>((p.seqlen_q + rows - 1) / rows), static_cast<unsigned>(p.num_heads),
                static_cast<unsigned>(p.batch));
  };
  if (p.seqlen_q > 0) {
    attention_query_statistics_kernel<T><<<grid(32), 128, 0, stream()>>>(a);
    CUDA_CHECK_LAUNCH();
  }
  if (p.seqlen_k > 0) {
    // The plain kernel of 256 would spill registers, the one with features does not.
    constexpr bool kAlways = kDim == 256, kNever = kDim == 32;
    a.featured || kAlways ? launch_backward_kernel<T, kDim, !kNever>(a)
                          : launch_backward_kernel<T, kDim, kAlways>(a);
  }
  if (p.seqlen_q == 0) return;
  attention_query_gradient_kernel<T, kDim><<<grid(64), 128, 64 * kDim * 2, stream()>>>(a);
  CUDA_CHECK_LAUNCH();
}

template <class T>
void launch_backward(const Arguments& a) {
  CUDA_CHECK(cudaMemsetAsync(a.query_sums, 0,
                             static_cast<std::size_t>(a.splits * a.split_stride) * sizeof(float), stream()));
  const int dim = padded_dim(a.params.head_dim, a.featured);
  dim == 32    ? launch_backward_kernels<T, 32>(a)
  : dim == 64  ? launch_backward_kernels<T, 64>(a)
  : dim == 128 ? launch_backward_kernels<T, 128>(a)
               : launch_backward_kernels<T, 256>(a);
}

}  // namespace ergon::kernels::cuda::attention_detail
