// FlashAttention-2's backward (Dao 2023, arXiv 2307.08691) over cores and register tiles. With scores s,
// probabilities p = exp(s - lse - residual), delta = sum(dout * o) and dropout's factors f:
//   dv = (f p)^T dout,  ds = p (f (dout v^T) - delta),  dq = scale * ds k,  dk = scale * ds^T q.

#include <limits>
#include <utility>

#include "core/parallel.h"
#include "kernels/cpu/attention_block.h"

namespace ergon::kernels::cpu {
namespace {

using namespace attention_detail;

// Queries and keys of a block: their scores, and the gradients of those, lie in the second-level cache.
int64_t block_length(int64_t head_dim) { return head_dim > 128 ? 64 : head_dim > 32 ? 128 : 256; }

// Which gradients of a block are wanted.
enum class Gradient { all, of_queries, of_keys };

template <class T>
class Backward {
  using Acc = accumulate_t<T>;

 public:
  // `dq_rows`: queries whose gradients are added up at the same time.
  Backward(const AttentionParams& params, int64_t dq_rows)
      : p_(params), block_(block_length(params.head_dim)), group_(params.num_heads / params.num_heads_kv) {
    const int64_t width = round_up(p_.head_dim, kLanes<Acc>), rows = block_ * width,
                  panels = block_ * p_.head_dim, matrix = block_ * block_;
    Acc* next =
        thread_workspace.reserve<Acc>(6 * rows + 2 * panels + 2 * matrix + 5 * block_ + dq_rows * width);
    const auto take = [&](int64_t elements) { return std::exchange(next, next + elements); };
    k_ = {take(rows), width}, v_ = {take(rows), width}, dk_ = {take(rows), width}, dv_ = {take(rows), width};
    q_ = {take(rows), width}, dout_ = {take(rows), width};
    p_matrix_ = take(matrix), ds_matrix_ = take(matrix);
    k_panels_ = take(panels), v_panels_ = take(panels);
    cap_slope_ = take(block_), factors_ = take(block_);
    lse_ = take(block_), residual_ = take(block_), delta_ = take(block_);
    dq_ = {take(dq_rows * width), width};
  }

  // All gradients of one item's keys of one head, and of the queries of all heads that share them.
  void run_head(int64_t batch, int64_t head_kv) {
    const Item item(p_, batch);
    std::fill_n(dq_.data, group_ * item.seqlen_q * dq_.width, Acc(0));
    for (int64_t key = 0; key < item.seqlen_k; key += block_) run_keys<Gradient::all>(item, head_kv, key);
    for (int64_t head = 0; head < group_; ++head) {
      scatter(Block<Acc>{dq_[head * item.seqlen_q], dq_.width}, {0, item.seqlen_q}, p_.head_dim,
              item.query_rows<T>(p_.dq, head_kv * group_ + head), static_cast<Acc>(p_.softmax_scale));
    }
  }

  // The gradients of one block of keys.
  void run_key_block(int64_t batch, int64_t head_kv, int64_t block) {
    const Item item(p_, batch);
    if (block * block_ < item.seqlen_k) run_keys<Gradient::of_keys>(item, head_kv, block * block_);
  }

  // The gradient of one block of queries.
  void run_query_block(int64_t batch, int64_t head, int64_t block) {
    const Item item(p_, batch);
    const Range queries{block * block_, std::min((block + 1) * block_, item.seqlen_q)};
    if (queries.empty()) return;
    std::fill_n(dq_.data, (queries.end - queries.begin) * dq_.width, Acc(0));
    load_queries(item, head, queries);
    const Range seen = item.keys_of(queries);
    for (int64_t key = seen.begin / block_ * block_; key < seen.end; key += block_) {
      const Range keys{key, std::min(key + block_, item.seqlen_k)};
      load_keys(item, head / group_, keys);
      run_block<Gradient::of_queries>(item, head, queries, keys, dq_);
    }
    scatter(dq_, queries, p_.head_dim, item.query_rows<T>(p_.dq, head), static_cast<Acc>(p_.softmax_scale));
  }

 private:
  template <Gradient gradient>
  void run_keys(const Item& item, int64_t head_kv, int64_t first_key) {
    const Range keys{first_key, std::min(first_key + block_, item.seqlen_k)};
    const int64_t count = keys.end - keys.begin;
    load_keys(item, head_kv, keys);
    std::fill_n(dk_.data, count * dk_.width, Acc(0));
    std::fill_n(dv_.data, count * dv_.width, Acc(0));
    const Range seeing = item.queries_of(keys);
    for (int64_t head = head_kv * group_; head < (head_kv + 1) * group_; ++head) {
      for (int64_t i = std::max<int64_t>(seeing.begin, 0) / block_ * block_; i < seeing.end; i += block_) {
        const Range queries{i, std::min(i + block_, item.seqlen_q)};
        load_queries(item, head, queries);
        run_block<gradient>(
            item, head, queries, keys,
            Block<Acc>{gradient == Gradient::all ? dq_[head % group_ * item.seqlen_q + i] : nullptr,
                       dq_.width});
      }
    }
    scatter(dk_, keys, p_.head_dim, item.key_rows<T>(p_.dk, head_kv));
    scatter(dv_, keys, p_.head_dim, item.key_rows<T>(p_.dv, head_kv));
  }

  void load_keys(const Item& item, int64_t head_kv, Range keys) {
    gather(item.key_rows<const T>(p_.k, head_kv), keys, p_.head_dim, k_);
    gather(item.key_rows<const T>(p_.v, head_kv), keys, p_.head_dim, v_);
    pack_transposed(k_, keys.end - keys.begin, p_.head_dim, k_panels_);
    pack_transposed(v_, keys.end - keys.begin, p_.head_dim, v_panels_);
  }

  void load_queries(const Item& item, int64_t head, Range queries) {
    gather(item.query_rows<const T>(p_.q, head), queries, p_.head_dim, q_,
           static_cast<Acc>(p_.softmax_scale));
    gather(item.query_rows<const T>(p_.dout, head), queries, p_.head_dim, dout_);
    for_rows_apart<false>(item.query_rows<const T>(p_.o, head), queries, p_.head_dim,
                          [&](int64_t i, const T* o) {
                            const int64_t row = i - queries.begin;
                            delta_[row] = dot(dout_[row], o, p_.head_dim);
                          });
    constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();
    for (int64_t i = queries.begin; i < queries.end; ++i) {
      const int64_t row = i - queries.begin, at = item.statistics(head) + i;
      const Acc lse = static_cast<const Acc*>(p_.softmax_lse)[at];
      lse_[row] = lse == -kInfinity ? kInfinity : lse;  // a query that sees no key has no probabilities
      residual_[row] =
          p_.softmax_lse_residual == nullptr ? Acc(0) : p_.softmax_lse_residual[at] * kLog2E<Acc>;
    }
  }

  // One block of queries against one of keys, both loaded: dq, dk_ and dv_ +=.
  template <Gradient gradient>
  void run_block(const Item& item, int64_t head, Range queries, Range keys, const Block<Acc>& dq) {
    const ScoreRules<T> rules(p_, item, head);
    for (int64_t i = queries.begin; i < queries.end; i += kTileM) {
      const Range strip{i, std::min<int64_t>(i + kTileM, queries.end)};
      const int64_t row = i - queries.begin, count = strip.end - strip.begin;
      const Columns columns = Columns::of<Acc>(item, strip, keys, block_, kTileM);
      const Range seen = columns.seen;
      if (seen.empty()) continue;
      Acc *const p = p_matrix_ + row * block_, *const ds = ds_matrix_ + row * block_;
      multiply_panels(q_[row], q_.width, count, p_.head_dim, k_panels_, seen, p, block_);
      multiply_panels(dout_[row], dout_.width, count, p_.head_dim, v_panels_, seen, ds, block_);
      for (int64_t r = 0; r < count; ++r) {
        differentiate_row(rules, i + r, item.keys_of(i + r).within(keys).minus(keys.begin), keys.begin,
                          columns.read, row + r, p + r * block_, ds + r * block_);
      }
      if constexpr (gradient != Gradient::of_keys) {
        const Range some = columns.some;
        accumulate_product(ds + some.begin, block_, 1, count, some.end - some.begin, k_[some.begin],
                           Block<Acc>{dq[row], dq.width});
      }
    }
    if constexpr (gradient == Gradient::of_queries) return;
    for (int64_t j = keys.begin; j < keys.end; j += kTileM) {
      const Range strip{j, std::min<int64_t>(j + kTileM, keys.end)};
      const Range seeing = item.queries_of(strip).within(queries).minus(queries.begin);
      if (seeing.empty()) continue;
      const int64_t column = j - keys.begin, at = seeing.begin * block_ + column,
                    count = strip.end - strip.begin, depth = seeing.end - seeing.begin;
      accumulate_product(ds_matrix_ + at, 1, block_, count, depth, q_[seeing.begin],
                         Block<Acc>{dk_[column], dk_.width});
      accumulate_product(p_matrix_ + at, 1, block_, count, depth, dout_[seeing.begin],
                         Block<Acc>{dv_[column], dv_.width});
    }
  }

  // One row of the matrices, `row` of the loaded queries: scores become f * p, and dout v^T becomes ds; zero
  // where it is masked.
  void differentiate_row(const ScoreRules<T>& rules, int64_t query, Range visible, int64_t first_key,
                         Range read, int64_t row, Acc* p, Acc* ds) {
    rules.apply(p, query, visible, first_key, cap_slope_);
    if (rules.drops) rules.drop(ds, query, visible, first_key, factors_);
    differentiate_softmax(p, ds, runs_of(visible), lse_[row], residual_[row], delta_[row]);
    if (rules.caps)
      for (int64_t j = visible.begin; j < visible.end; ++j) ds[j] *= cap_slope_[j];
    if (rules.drops)
      for (int64_t j = visible.begin; j < visible.end; ++j) p[j] *= factors_[j];
    for (Acc* matrix_row : {p, ds}) {
      fill_edges(matrix_row, visible, Acc(0));
      clear_outside(matrix_row, visible, read);
    }
  }

  // p = exp(p - lse) / 2^residual, ds = p * (ds - delta)
  static void differentiate_softmax(Acc* __restrict p, Acc* __restrict ds, Range runs, Acc lse, Acc residual,
                                    Acc delta) {
#pragma omp simd
    for (int64_t j = runs.begin; j < runs.end; ++j) {
      p[j] = exp_shifted(p[j], lse, residual);
      ds[j] = p[j] * (ds[j] - delta);
    }
  }

  const AttentionParams& p_;
  const int64_t block_, group_;
  Block<Acc> k_, v_, dk_, dv_;  // (block)
  Block<Acc> q_, dout_;         // (block); q times the scale
  Block<Acc> dq_;               // (dq_rows), still to be multiplied by the scale
  Acc *p_matrix_, *ds_matrix_;  // (block, block)
  Acc *k_panels_, *v_panels_;   // k^T and v^T as B of a product
  Acc *cap_slope_, *factors_;   // (block): of a row
  // (block): of the loaded queries; the residual in powers of 2
  Acc *lse_, *residual_, *delta_;
};

template <class T>
void backward(const AttentionParams& p) {
  const int64_t heads = p.batch * p.num_heads_kv, group = p.num_heads / p.num_heads_kv,
                threads = num_threads();
  // A head a thread takes 5 products; gradients of keys apart from those of queries take 7, but split evenly.
  if ((heads + threads - 1) / threads * threads * 5 <= heads * 7) {
    parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
      Backward<T> backward(p, group * p.seqlen_q);
      for (int64_t i = begin; i < end; ++i) backward.run_head(i / p.num_heads_kv, i % p.num_heads_kv);
    });
    return;
  }
  const int64_t block = block_length(p.head_dim), key_blocks = (p.seqlen_k + block - 1) / block,
                query_blocks = (p.seqlen_q + block - 1) / block;
  parallel_for(0, heads * key_blocks, 1, [&](int64_t begin, int64_t end) {
    Backward<T> backward(p, 0);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / key_blocks;
      backward.run_key_block(head / p.num_heads_kv, head % p.num_heads_kv,
                             folded(i % key_blocks, key_blocks));
    }
  });
  parallel_for(0, heads * group * query_blocks, 1, [&](int64_t begin, int64_t end) {
    Backward<T> backward(p, block);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / query_blocks;
      backward.run_query_block(head / p.num_heads, head % p.num_heads,
                               folded(i % query_blocks, query_blocks));
    }
  });
}

}  // namespace

void attention_backward(const AttentionParams& p) {
  if (p.head_dim == 0) return;
  dispatch_floating(p.dtype, "attention_backward",
                    [&](auto tag) { backward<typename decltype(tag)::type>(p); });
}

}  // namespace ergon::kernels::cpu
