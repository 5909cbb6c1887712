#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/workspace.h"
#include "kernels/gemm.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kBlockRows =
    32;  // query rows at a time: a causal block computes few products that the mask discards

thread_local Workspace thread_workspace;

// One (batch, head) slice of an operand, as a matrix (seqlen, head_dim).
template <class T>
struct Slice {
  T* data = nullptr;
  std::int64_t stride = 0;

  Slice(const AttentionOperand& operand, std::int64_t batch, std::int64_t head)
      : data(static_cast<T*>(operand.data) + batch * operand.batch_stride + head * operand.head_stride),
        stride(operand.seqlen_stride) {}
  T* row(std::int64_t i) const { return data + i * stride; }
};

template <class T>
GemmOperand<const void*> matrix(const T* data, std::int64_t stride) {
  return {data, dtype_of<T>(), stride, 1};
}
template <class T>
GemmOperand<const void*> transposed(const T* data, std::int64_t stride) {
  return {data, dtype_of<T>(), 1, stride};
}
template <class T>
GemmOperand<void*> result(T* data, std::int64_t stride) {
  return {data, dtype_of<T>(), stride, 1};
}

// What one block of query rows of one head works on.
struct Block {
  std::int64_t first;  // query row
  std::int64_t rows;
  std::int64_t keys;  // keys that any of its rows sees
};

// Keys that query row i sees.
std::int64_t visible_keys(const AttentionParams& p, std::int64_t i) {
  return p.causal ? std::clamp<std::int64_t>(i + 1 + p.seqlen_k - p.seqlen_q, 0, p.seqlen_k) : p.seqlen_k;
}

Block block_at(const AttentionParams& p, std::int64_t first) {
  const std::int64_t rows = std::min(kBlockRows, p.seqlen_q - first);
  return {first, rows, visible_keys(p, first + rows - 1)};
}

// scores (rows, keys) = scale * q k^T, the leading dimension is block.keys.
template <class T, class Acc>
void scores(const AttentionParams& p, const Block& block, const Slice<T>& q, const Slice<T>& k, Acc* s) {
  gemm({.M = block.rows,
        .N = block.keys,
        .K = p.head_dim,
        .a = matrix(q.row(block.first), q.stride),
        .b = transposed(k.data, k.stride),
        .c = result(s, block.keys),
        .alpha = p.softmax_scale});
}

template <class Acc>
Acc row_max(const Acc* row, std::int64_t n) {
  constexpr int kLanesUsed = 16;
  Acc best[kLanesUsed];
  std::fill_n(best, kLanesUsed, -std::numeric_limits<Acc>::infinity());
  std::int64_t i = 0;
  for (; i + kLanesUsed <= n; i += kLanesUsed) {
    for (int lane = 0; lane < kLanesUsed; ++lane)
      best[lane] = row[i + lane] > best[lane] ? row[i + lane] : best[lane];
  }
  for (; i < n; ++i) best[0] = std::max(best[0], row[i]);
  return *std::max_element(best, best + kLanesUsed);
}

// row[j] = exp(row[j] - shift); returns the sum.
template <class Acc>
Acc exp_and_sum(Acc* row, std::int64_t n, Acc shift) {
  constexpr int kLanesUsed = 16;
  Acc sums[kLanesUsed] = {};
  std::int64_t i = 0;
  for (; i + kLanesUsed <= n; i += kLanesUsed) {
    for (int lane = 0; lane < kLanesUsed; ++lane) {
      row[i + lane] = vexp(row[i + lane] - shift);
      sums[lane] += row[i + lane];
    }
  }
  for (; i < n; ++i) sums[0] += row[i] = vexp(row[i] - shift);
  Acc sum = 0;
  for (Acc s : sums) sum += s;
  return sum;
}

template <class T>
void forward_head(const AttentionParams& p, std::int64_t batch, std::int64_t head, accumulate_t<T>* s) {
  using Acc = accumulate_t<T>;
  const std::int64_t head_kv = head / (p.num_heads / p.num_heads_kv);
  const Slice<T> q(p.q, batch, head), k(p.k, batch, head_kv), v(p.v, batch, head_kv), o(p.o, batch, head);
  Acc* lse = p.softmax_lse == nullptr
                 ? nullptr
                 : static_cast<Acc*>(p.softmax_lse) + (batch * p.num_heads + head) * p.seqlen_q;
  for (std::int64_t first = 0; first < p.seqlen_q; first += kBlockRows) {
    const Block block = block_at(p, first);
    scores(p, block, q, k, s);
    for (std::int64_t r = 0; r < block.rows; ++r) {
      Acc* row = s + r * block.keys;
      const std::int64_t visible = visible_keys(p, first + r);
      const Acc max = row_max(row, visible);
      const Acc sum = visible > 0 ? exp_and_sum(row, visible, max) : Acc(0);
      const Acc inverse = sum > 0 || sum != sum ? Acc(1) / sum : Acc(0);
      for (std::int64_t j = 0; j < visible; ++j) row[j] *= inverse;
      std::fill(row + visible, row + block.keys, Acc(0));
      if (lse != nullptr)
        lse[first + r] = visible > 0 ? max + std::log(sum) : -std::numeric_limits<Acc>::infinity();
    }
    gemm({.M = block.rows,
          .N = p.head_dim,
          .K = block.keys,
          .a = matrix(s, block.keys),
          .b = matrix(v.data, v.stride),
          .c = result(o.row(first), o.stride)});
  }
}

// Scratch of one thread in the backward.
template <class Acc>
struct BackwardScratch {
  explicit BackwardScratch(const AttentionParams& p)
      : probabilities(thread_workspace.reserve<Acc>(2 * p.seqlen_k * (kBlockRows + p.head_dim))),
        dscores(probabilities + kBlockRows * p.seqlen_k),
        dk(dscores + kBlockRows * p.seqlen_k),
        dv(dk + p.seqlen_k * p.head_dim) {}
  Acc *probabilities, *dscores;  // (kBlockRows, seqlen_k)
  Acc *dk, *dv;                  // (seqlen_k, head_dim)
};

// One block of query rows: dq = ds k, dk += ds^T q, dv += p^T dout, with
// p = exp(s - lse), dp = dout v^T, ds = scale * p * (dp - sum(dout * o)).
template <class T>
void backward_block(const AttentionParams& p, std::int64_t batch, std::int64_t head, const Block& block,
                    BackwardScratch<accumulate_t<T>>& scratch) {
  using Acc = accumulate_t<T>;
  const std::int64_t head_kv = head / (p.num_heads / p.num_heads_kv), D = p.head_dim, keys = block.keys;
  const Slice<T> q(p.q, batch, head), k(p.k, batch, head_kv), v(p.v, batch, head_kv), o(p.o, batch, head),
      dout(p.dout, batch, head), dq(p.dq, batch, head);
  const Acc* lse = static_cast<const Acc*>(p.softmax_lse) + (batch * p.num_heads + head) * p.seqlen_q;
  Acc *probabilities = scratch.probabilities, *dscores = scratch.dscores;

  scores(p, block, q, k, probabilities);
  gemm({.M = block.rows,
        .N = keys,
        .K = D,
        .a = matrix(dout.row(block.first), dout.stride),
        .b = transposed(v.data, v.stride),
        .c = result(dscores, keys)});
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const std::int64_t i = block.first + r, visible = visible_keys(p, i);
    Acc *p_row = probabilities + r * keys, *ds_row = dscores + r * keys;
    Acc delta = 0;
    for (std::int64_t d = 0; d < D; ++d) delta += Acc(dout.row(i)[d]) * Acc(o.row(i)[d]);
    const Acc shift = lse[i], scale = Acc(p.softmax_scale);
    for (std::int64_t j = 0; j < visible; ++j) {
      p_row[j] = vexp(p_row[j] - shift);
      ds_row[j] = scale * p_row[j] * (ds_row[j] - delta);
    }
    std::fill(p_row + visible, p_row + keys, Acc(0));
    std::fill(ds_row + visible, ds_row + keys, Acc(0));
  }
  gemm({.M = block.rows,
        .N = D,
        .K = keys,
        .a = matrix(dscores, keys),
        .b = matrix(k.data, k.stride),
        .c = result(dq.row(block.first), dq.stride)});
  gemm({.M = keys,
        .N = D,
        .K = block.rows,
        .a = transposed(dscores, keys),
        .b = matrix(q.row(block.first), q.stride),
        .c = result(scratch.dk, D),
        .beta = 1});
  gemm({.M = keys,
        .N = D,
        .K = block.rows,
        .a = transposed(probabilities, keys),
        .b = matrix(dout.row(block.first), dout.stride),
        .c = result(scratch.dv, D),
        .beta = 1});
}

template <class T>
void backward_head_kv(const AttentionParams& p, std::int64_t batch, std::int64_t head_kv,
                      BackwardScratch<accumulate_t<T>>& scratch) {
  std::fill_n(scratch.dk, 2 * p.seqlen_k * p.head_dim, accumulate_t<T>(0));  // and dv, which follows
  const std::int64_t group = p.num_heads / p.num_heads_kv;
  for (std::int64_t head = head_kv * group; head < (head_kv + 1) * group; ++head) {
    for (std::int64_t first = 0; first < p.seqlen_q; first += kBlockRows) {
      backward_block<T>(p, batch, head, block_at(p, first), scratch);
    }
  }
  const Slice<T> dk(p.dk, batch, head_kv), dv(p.dv, batch, head_kv);
  for (std::int64_t j = 0; j < p.seqlen_k; ++j) {
    convert_run(scratch.dk + j * p.head_dim, dk.row(j), p.head_dim);
    convert_run(scratch.dv + j * p.head_dim, dv.row(j), p.head_dim);
  }
}

}  // namespace

void attention_forward(const AttentionParams& p) {
  if (p.batch * p.num_heads * p.seqlen_q * p.head_dim == 0) return;
  dispatch_floating(p.dtype, "attention_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(0, p.batch * p.num_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      auto* s = thread_workspace.reserve<accumulate_t<T>>(kBlockRows * p.seqlen_k);
      for (std::int64_t i = begin; i < end; ++i) forward_head<T>(p, i / p.num_heads, i % p.num_heads, s);
    });
  });
}

void attention_backward(const AttentionParams& p) {
  if (p.batch * p.num_heads_kv * p.head_dim == 0) return;
  dispatch_floating(p.dtype, "attention_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(0, p.batch * p.num_heads_kv, 1, [&](std::int64_t begin, std::int64_t end) {
      BackwardScratch<accumulate_t<T>> scratch(p);
      for (std::int64_t i = begin; i < end; ++i) {
        backward_head_kv<T>(p, i / p.num_heads_kv, i % p.num_heads_kv, scratch);
      }
    });
  });
}

}  // namespace ergon::kernels::cpu
