#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/row_reduce.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/workspace.h"

namespace ergon::kernels::cpu {
namespace {

using gemm_detail::kTileM;
using gemm_detail::kTileN;
using gemm_detail::multiply_tiles;
using std::int64_t;

// Query rows at a time, whole register tiles: few, so that a causal block computes few products that the mask
// discards.
constexpr int64_t kBlockRows = 28 / kTileM * kTileM;

thread_local Workspace thread_workspace;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// One (batch, head) slice of an operand, as a matrix (seqlen, head_dim).
template <class T>
struct Slice {
  T* data = nullptr;
  int64_t stride = 0;

  Slice(const AttentionOperand& operand, int64_t batch, int64_t head)
      : data(static_cast<T*>(operand.data) + batch * operand.batch_stride + head * operand.head_stride),
        stride(operand.seqlen_stride) {}
  T* row(int64_t i) const { return data + i * stride; }
};

// Keys that query row i sees.
int64_t visible_keys(const AttentionParams& p, int64_t i) {
  return p.causal ? std::clamp<int64_t>(i + 1 + p.seqlen_k - p.seqlen_q, 0, p.seqlen_k) : p.seqlen_k;
}

// What one block of query rows of one head works on.
struct Block {
  int64_t first;  // query row
  int64_t rows;
  int64_t keys;  // keys that any of its rows sees
};

Block block_at(const AttentionParams& p, int64_t first) {
  const int64_t rows = std::min(kBlockRows, p.seqlen_q - first);
  return {first, rows, visible_keys(p, first + rows - 1)};
}

constexpr int64_t kRun = 16;  // elements that loops over scores take at a time

// Scratch of one thread: matrices of the arithmetic type with rows of whole vectors.
template <class Acc>
struct Scratch {
  int64_t width;             // of a row of head_dim elements
  int64_t keys;              // of a row of scores
  Acc *k_panels, *v_panels;  // (keys / kTileN, head_dim, kTileN): k^T and v^T, as B of a product
  Acc *k, *v;                // (seqlen_k, width)
  Acc *dk, *dv;              // (seqlen_k, width)
  Acc *q, *dout, *out;       // (kBlockRows, width); q times the scale
  Acc *p, *ds;               // (kBlockRows, keys)

  Scratch(const AttentionParams& params, bool backward)
      : width(round_up(params.head_dim, kLanes<Acc>)),
        keys(round_up(params.seqlen_k, std::max<int64_t>(kTileN<Acc>, kRun))) {
    const int64_t panels = keys * params.head_dim, matrix = params.seqlen_k * width,
                  block = kBlockRows * width, scores = kBlockRows * keys;
    Acc* next = thread_workspace.reserve<Acc>(2 * panels + 4 * matrix + 3 * block + 2 * scores);
    const auto take = [&](int64_t elements) { return std::exchange(next, next + elements); };
    k_panels = take(panels), v = take(matrix), q = take(block), out = take(block), p = take(scores);
    if (!backward) return;
    v_panels = take(panels), k = take(matrix), dk = take(matrix), dv = take(matrix);
    dout = take(block), ds = take(scores);
  }
};

// target[i] = scale * source[i], in place first where only one of them has the arithmetic type.
template <class From, class To, class Acc>
void copy_scaled(From* source, To* target, int64_t n, Acc scale) {
  if constexpr (std::is_same_v<std::remove_const_t<From>, To>) {
    for (int64_t i = 0; i < n; ++i) target[i] = scale * source[i];
  } else if constexpr (std::is_same_v<To, Acc>) {
    convert_run(source, target, n);
    for (int64_t i = 0; i < n; ++i) target[i] *= scale;
  } else {
    for (int64_t i = 0; i < n; ++i) source[i] *= scale;
    convert_run(source, target, n);
  }
}

// target (rows, width) = scale * source; what lies beyond head_dim in a row is left as it is.
template <class T, class Acc>
void gather_rows(const AttentionParams& p, const Slice<T>& source, int64_t first, int64_t rows, Acc* target,
                 int64_t width, Acc scale = 1) {
  for (int64_t r = 0; r < rows; ++r)
    copy_scaled(source.row(first + r), target + r * width, p.head_dim, scale);
}

template <class T, class Acc>
void gather_panels(const AttentionParams& p, const Slice<T>& source, Acc* target) {
  for (int64_t j = 0; j < p.seqlen_k; j += kTileN<Acc>) {
    const int lanes = static_cast<int>(std::min<int64_t>(kTileN<Acc>, p.seqlen_k - j));
    gemm_detail::pack_panel(gemm_detail::Panel<T>{source.row(j), source.stride, 1, lanes, p.head_dim},
                            kTileN<Acc>, target + j * p.head_dim);
  }
}

// scores (rows, keys) = a (rows, width) times a matrix of panels.
template <class Acc>
void scores(const AttentionParams& p, const Block& block, const Scratch<Acc>& scratch, const Acc* a,
            const Acc* panels, Acc* result) {
  multiply_tiles<Acc>({.M = block.rows,
                       .N = round_up(block.keys, kLanes<Acc>),
                       .K = p.head_dim,
                       .a = a,
                       .row_stride = scratch.width,
                       .col_stride = 1,
                       .b = panels,
                       .ldb = kTileN<Acc>,
                       .panel_stride = p.head_dim * kTileN<Acc>,
                       .c = result,
                       .ldc = scratch.keys});
}

// result (rows, width) = s (rows, keys) times m (keys, width)
template <class Acc>
void over_keys(const Block& block, const Scratch<Acc>& scratch, const Acc* s, const Acc* m, Acc* result) {
  multiply_tiles<Acc>({.M = block.rows,
                       .N = scratch.width,
                       .K = block.keys,
                       .a = s,
                       .row_stride = scratch.keys,
                       .col_stride = 1,
                       .b = m,
                       .ldb = scratch.width,
                       .panel_stride = kTileN<Acc>,
                       .c = result,
                       .ldc = scratch.width});
}

// sum (keys, width) += s^T m, for s (rows, keys) and m (rows, width)
template <class Acc>
void over_rows(const Block& block, const Scratch<Acc>& scratch, const Acc* s, const Acc* m, Acc* sum) {
  multiply_tiles<Acc>({.M = block.keys,
                       .N = scratch.width,
                       .K = block.rows,
                       .a = s,
                       .row_stride = 1,
                       .col_stride = scratch.keys,
                       .b = m,
                       .ldb = scratch.width,
                       .panel_stride = kTileN<Acc>,
                       .c = sum,
                       .ldc = scratch.width,
                       .accumulate = true});
}

template <class T>
void forward_head(const AttentionParams& p, int64_t batch, int64_t head,
                  const Scratch<accumulate_t<T>>& scratch) {
  using Acc = accumulate_t<T>;
  const Slice<T> q(p.q, batch, head), o(p.o, batch, head);
  Acc* lse = p.softmax_lse == nullptr
                 ? nullptr
                 : static_cast<Acc*>(p.softmax_lse) + (batch * p.num_heads + head) * p.seqlen_q;
  for (int64_t first = 0; first < p.seqlen_q; first += kBlockRows) {
    const Block block = block_at(p, first);
    gather_rows(p, q, first, block.rows, scratch.q, scratch.width, static_cast<Acc>(p.softmax_scale));
    scores(p, block, scratch, scratch.q, scratch.k_panels, scratch.p);
    Acc inverse[kBlockRows];
    for (int64_t r = 0; r < block.rows; ++r) {
      Acc* row = scratch.p + r * scratch.keys;
      const int64_t visible = visible_keys(p, first + r);
      // Whole runs: exp of what is added is next to nothing, and it ends up as zero.
      const int64_t whole = round_up(visible, kRun);
      std::fill(row + visible, row + whole, -std::numeric_limits<Acc>::infinity());
      const Acc max = reduce_run<ReduceOp::max, NanMode::skip>(row, whole);
      const Acc sum = sum_of<Acc>(whole, [&](int64_t j) { return row[j] = vexp_normal(row[j] - max); });
      inverse[r] = sum > 0 || sum != sum ? Acc(1) / sum : Acc(0);
      std::fill(row + visible, row + block.keys, Acc(0));
      if (lse != nullptr)
        lse[first + r] = visible > 0 ? max + std::log(sum) : -std::numeric_limits<Acc>::infinity();
    }
    over_keys(block, scratch, scratch.p, scratch.v, scratch.out);
    for (int64_t r = 0; r < block.rows; ++r) {
      copy_scaled(scratch.out + r * scratch.width, o.row(first + r), p.head_dim, inverse[r]);
    }
  }
}

// One block of query rows: dq = scale * ds k, dk += scale * ds^T q, dv += p^T dout, with
// p = exp(scale * q k^T - lse), dp = dout v^T, ds = p * (dp - sum(dout * o)).
template <class T>
void backward_block(const AttentionParams& p, int64_t batch, int64_t head, const Block& block,
                    const Scratch<accumulate_t<T>>& scratch) {
  using Acc = accumulate_t<T>;
  const Slice<T> q(p.q, batch, head), o(p.o, batch, head), dout(p.dout, batch, head), dq(p.dq, batch, head);
  const Acc* lse = static_cast<const Acc*>(p.softmax_lse) + (batch * p.num_heads + head) * p.seqlen_q;
  const auto scale = static_cast<Acc>(p.softmax_scale);
  gather_rows(p, q, block.first, block.rows, scratch.q, scratch.width, scale);
  gather_rows(p, dout, block.first, block.rows, scratch.dout, scratch.width);
  gather_rows(p, o, block.first, block.rows, scratch.out, scratch.width);
  scores(p, block, scratch, scratch.q, scratch.k_panels, scratch.p);
  scores(p, block, scratch, scratch.dout, scratch.v_panels, scratch.ds);
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t visible = visible_keys(p, block.first + r);
    Acc* __restrict p_row = scratch.p + r * scratch.keys;
    Acc* __restrict ds_row = scratch.ds + r * scratch.keys;
    const Acc *dout_row = scratch.dout + r * scratch.width, *o_row = scratch.out + r * scratch.width;
    const Acc delta = sum_of<Acc>(p.head_dim, [&](int64_t d) { return dout_row[d] * o_row[d]; });
    const Acc shift = lse[block.first + r];
    const int64_t whole = round_up(visible, kRun);
    for (int64_t j = 0; j < whole; ++j) {
      p_row[j] = vexp_normal(p_row[j] - shift);
      ds_row[j] = p_row[j] * (ds_row[j] - delta);
    }
    std::fill(p_row + visible, p_row + block.keys, Acc(0));
    std::fill(ds_row + visible, ds_row + block.keys, Acc(0));
  }
  over_keys(block, scratch, scratch.ds, scratch.k, scratch.out);
  for (int64_t r = 0; r < block.rows; ++r) {
    copy_scaled(scratch.out + r * scratch.width, dq.row(block.first + r), p.head_dim, scale);
  }
  over_rows(block, scratch, scratch.ds, scratch.q, scratch.dk);
  over_rows(block, scratch, scratch.p, scratch.dout, scratch.dv);
}

template <class T>
void backward_head_kv(const AttentionParams& p, int64_t batch, int64_t head_kv,
                      const Scratch<accumulate_t<T>>& scratch) {
  const Slice<T> k(p.k, batch, head_kv), v(p.v, batch, head_kv), dk(p.dk, batch, head_kv),
      dv(p.dv, batch, head_kv);
  gather_panels(p, k, scratch.k_panels);
  gather_panels(p, v, scratch.v_panels);
  gather_rows(p, k, 0, p.seqlen_k, scratch.k, scratch.width);
  std::fill_n(scratch.dk, 2 * p.seqlen_k * scratch.width, accumulate_t<T>(0));  // and dv, which follows
  const int64_t group = p.num_heads / p.num_heads_kv;
  for (int64_t head = head_kv * group; head < (head_kv + 1) * group; ++head) {
    for (int64_t first = 0; first < p.seqlen_q; first += kBlockRows) {
      backward_block<T>(p, batch, head, block_at(p, first), scratch);
    }
  }
  for (int64_t j = 0; j < p.seqlen_k; ++j) {
    copy_scaled(scratch.dk + j * scratch.width, dk.row(j), p.head_dim, accumulate_t<T>(1));
    copy_scaled(scratch.dv + j * scratch.width, dv.row(j), p.head_dim, accumulate_t<T>(1));
  }
}

}  // namespace

void attention_forward(const AttentionParams& p) {
  if (p.batch * p.num_heads * p.seqlen_q * p.head_dim == 0) return;
  dispatch_floating(p.dtype, "attention_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(0, p.batch * p.num_heads, 1, [&](int64_t begin, int64_t end) {
      const Scratch<accumulate_t<T>> scratch(p, false);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t batch = i / p.num_heads, head = i % p.num_heads, group = p.num_heads / p.num_heads_kv;
        if (i == begin || head % group == 0) {  // the first of those that share k and v
          const Slice<T> k(p.k, batch, head / group), v(p.v, batch, head / group);
          gather_panels(p, k, scratch.k_panels);
          gather_rows(p, v, 0, p.seqlen_k, scratch.v, scratch.width);
        }
        forward_head<T>(p, batch, head, scratch);
      }
    });
  });
}

void attention_backward(const AttentionParams& p) {
  if (p.batch * p.num_heads_kv * p.head_dim == 0) return;
  dispatch_floating(p.dtype, "attention_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(0, p.batch * p.num_heads_kv, 1, [&](int64_t begin, int64_t end) {
      const Scratch<accumulate_t<T>> scratch(p, true);
      for (int64_t i = begin; i < end; ++i) {
        backward_head_kv<T>(p, i / p.num_heads_kv, i % p.num_heads_kv, scratch);
      }
    });
  });
}

}  // namespace ergon::kernels::cpu
