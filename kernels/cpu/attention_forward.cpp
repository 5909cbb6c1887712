// FlashAttention-2's forward (Dao 2023, arXiv 2307.08691) over cores and register tiles: a block of queries
// against one block of keys after another, with the online softmax of Milakov and Gimelshein (arXiv
// 1805.02867).

#include <limits>
#include <tuple>
#include <utility>

#include "core/parallel.h"
#include "kernels/cpu/attention_decode.h"
#include "kernels/cpu/attention_parts.h"

namespace ergon::kernels::cpu {
namespace {

using namespace attention_detail;

// Queries and keys of a block. The scores of kTileM queries stay in the first-level cache; keys and values,
// packed once for all queries of the block, with queries and outputs in the second.
int64_t block_length(int64_t head_dim) {
  return std::clamp<int64_t>(16384 / std::max<int64_t>(head_dim, 1) / 32 * 32, 64, 256);
}

// Into how many parts the keys of few queries are split, whose results are added up in order: as many as make
// kUnits units of work, but of no fewer keys than kLeast each. It does not depend on the number of threads,
// and so the results do not.
int64_t key_parts(const AttentionParams& p) {
  constexpr int64_t kFew = 16, kUnits = 64, kLeast = 512;
  if (p.seqlen_q > kFew) return 1;
  return std::clamp<int64_t>(kUnits / std::max<int64_t>(p.batch * p.num_heads_kv, 1), 1,
                             std::max<int64_t>(p.seqlen_k / kLeast, 1));
}

// How the work is split: a unit is `rows` queries of `heads` query heads that share k and v, and one part of
// the keys.
struct Split {
  int64_t rows, row_blocks, heads, head_blocks, group, parts, part_keys;
  int64_t units;

  explicit Split(const AttentionParams& p) : group(p.num_heads / p.num_heads_kv), parts(key_parts(p)) {
    const int64_t block = block_length(p.head_dim);
    row_blocks = (p.seqlen_q + block - 1) / block;
    rows = round_up((p.seqlen_q + row_blocks - 1) / row_blocks, kTileM);
    // Few queries: several heads, as long as there is a unit for every thread.
    heads =
        std::clamp<int64_t>(std::min(block / rows, p.batch * p.num_heads * parts / num_threads()), 1, group);
    head_blocks = (group + heads - 1) / heads;
    part_keys = round_up((p.seqlen_k + parts - 1) / parts, block);
    units = p.batch * p.num_heads_kv * head_blocks * row_blocks * parts;
  }
};

template <class T>
class Forward {
  using Acc = accumulate_t<T>;

 public:
  Forward(const AttentionParams& params, const Split& split)
      : p_(params), split_(split), block_(block_length(p_.head_dim)) {
    const int64_t width = round_up(p_.head_dim, kLanes<Acc>), rows = split.heads * split.rows;
    Acc* next = thread_workspace.reserve<Acc>(2 * rows * width + 2 * rows
                                              + block_ * (2 * width + p_.head_dim + kTileM + 1) + kRun);
    const auto take = [&](int64_t elements) { return std::exchange(next, next + round_up(elements, kRun)); };
    q_ = {take(rows * width), width}, out_ = {take(rows * width), width};
    k_ = {take(block_ * width), width}, v_ = {take(block_ * width), width};
    k_panels_ = take(block_ * p_.head_dim), scores_ = take(kTileM * block_);
    factors_ = take(block_), max_ = take(rows), sum_ = take(rows);
  }

  void run(int64_t unit) {
    const int64_t part = unit % split_.parts;
    unit /= split_.parts;
    const int64_t row_block = folded(unit % split_.row_blocks, split_.row_blocks);
    unit /= split_.row_blocks;
    const int64_t head_block = unit % split_.head_blocks;
    unit /= split_.head_blocks;
    const int64_t head_kv = unit % p_.num_heads_kv;
    const Item item(p_, unit / p_.num_heads_kv);
    const int64_t first_head = head_kv * split_.group + head_block * split_.heads,
                  last_head = std::min(first_head + split_.heads, (head_kv + 1) * split_.group);
    const Range rows{row_block * split_.rows, std::min((row_block + 1) * split_.rows, item.seqlen_q)};
    if (rows.empty()) return;

    for (int64_t head = first_head; head < last_head; ++head) start(item, head, head - first_head, rows);
    const Range seen = item.keys_of(rows).within({part * split_.part_keys, (part + 1) * split_.part_keys});
    for (int64_t key = seen.begin / block_ * block_; key < seen.end; key += block_) {
      const Range keys{key, std::min(key + block_, item.seqlen_k)};
      load_keys(item, head_kv, keys);
      for (int64_t head = first_head; head < last_head; ++head) {
        const ScoreRules<T> rules(p_, item, head);
        for (int64_t i = rows.begin; i < rows.end; i += kTileM)
          attend(item, rules, {i, std::min<int64_t>(i + kTileM, rows.end)}, keys,
                 (head - first_head) * split_.rows + i - rows.begin);
      }
    }
    for (int64_t head = first_head; head < last_head; ++head) {
      const int64_t slot = head - first_head;
      split_.parts == 1 ? finish(item, head, slot, rows) : leave(item, head, slot, rows, part);
    }
  }

 private:
  void start(const Item& item, int64_t head, int64_t slot, Range rows) {
    const int64_t first = slot * split_.rows, count = rows.end - rows.begin;
    gather(item.query_rows<const T>(p_.q, head), rows, p_.head_dim, Block<Acc>{q_[first], q_.width},
           static_cast<Acc>(p_.softmax_scale));
    std::fill_n(out_[first], count * out_.width, Acc(0));
    std::fill_n(max_ + first, count, -std::numeric_limits<Acc>::infinity());
    std::fill_n(sum_ + first, count, Acc(0));
  }

  void load_keys(const Item& item, int64_t head_kv, Range keys) {
    const std::tuple which{item.batch, head_kv, keys.begin};
    if (std::exchange(loaded_, which) == which) return;
    gather(item.key_rows<const T>(p_.k, head_kv), keys, p_.head_dim, k_);
    gather(item.key_rows<const T>(p_.v, head_kv), keys, p_.head_dim, v_);
    pack_transposed(k_, keys.end - keys.begin, p_.head_dim, k_panels_);
  }

  // A strip of queries, whose rows of scratch begin at `row`, against a block of keys.
  void attend(const Item& item, const ScoreRules<T>& rules, Range queries, Range keys, int64_t row) {
    const int64_t count = queries.end - queries.begin;
    const Columns columns = Columns::of<Acc>(item, queries, keys, block_);
    const Range seen = columns.seen;
    if (seen.empty()) return;
    multiply_panels(q_[row], q_.width, count, p_.head_dim, k_panels_, seen, scores_, block_);
    Range visible[kTileM];
    Acc maxima[kTileM];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t query = queries.begin + r;
      visible[r] = item.keys_of(query).within(keys).minus(keys.begin);
      Acc* const scores = scores_ + r * block_;
      rules.apply(scores, query, visible[r], keys.begin);
      fill_edges(scores, visible[r], -std::numeric_limits<Acc>::infinity());
      maxima[r] = largest_of(scores, runs_of(visible[r]));
    }
    for (int64_t r = 0; r < count; ++r) {
      Acc* const scores = scores_ + r * block_;
      update_softmax(scores, runs_of(visible[r]), maxima[r], row + r);
      if (rules.drops) rules.drop(scores, queries.begin + r, visible[r], keys.begin, factors_);
      clear_outside(scores, visible[r], columns.read);
    }
    const Range some = columns.some;  // 0 times a value that no query sees could be NaN
    accumulate_product(scores_ + some.begin, block_, 1, count, some.end - some.begin, v_[some.begin],
                       Block<Acc>{out_[row], out_.width});
  }

  // Turns a row's scores into exp(score - max), zero where it is masked, and the output so far to that max.
  void update_softmax(Acc* scores, Range runs, Acc block_max, int64_t row) {
    const Acc max = std::max(max_[row], block_max);
    const Acc sum = exponentiate(scores, runs, max);
    if (max > max_[row]) {
      const Acc correction = exp_shifted(max_[row], max);  // of zeros where there was no max
      sum_[row] *= correction;
      for (int64_t d = 0; d < out_.width; ++d) out_[row][d] *= correction;
      max_[row] = max;
    }
    sum_[row] += sum;
  }

  void finish(const Item& item, int64_t head, int64_t slot, Range rows) {
    const Rows<T> o = item.query_rows<T>(p_.o, head);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t row = slot * split_.rows + i - rows.begin;
      const Acc max = max_[row], sum = sum_[row];
      store_scaled(out_[row], p_.head_dim, sum == 0 ? Acc(0) : 1 / sum, o[i]);
      store_lse(p_, item.statistics(head) + i, max, sum);
    }
  }

  // One part's results.
  void leave(const Item& item, int64_t head, int64_t slot, Range rows, int64_t part) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t row = slot * split_.rows + i - rows.begin;
      Acc* const to = part_of<Acc>(p_, split_.parts, item.batch, head, i, part);
      std::copy_n(out_[row], p_.head_dim, to);
      to[p_.head_dim] = max_[row], to[p_.head_dim + 1] = sum_[row];
    }
  }

  const AttentionParams& p_;
  const Split& split_;
  const int64_t block_;
  Block<Acc> q_, out_;                                        // (heads * rows); q times the scale
  Block<Acc> k_, v_;                                          // (block)
  Acc* k_panels_;                                             // k^T as B of a product
  Acc* scores_;                                               // (kTileM, block)
  Acc* factors_;                                              // (block): of a row's dropout
  Acc *max_, *sum_;                                           // (heads * rows)
  std::tuple<int64_t, int64_t, int64_t> loaded_{-1, -1, -1};  // which keys k_, v_ and k_panels_ hold
};

}  // namespace

std::int64_t attention_forward_workspace(const AttentionParams& p) {
  if (is_decoding(p)) return decoding_workspace(p);
  const int64_t parts = key_parts(p);
  return parts == 1 ? 0 : parts_workspace(p, parts);
}

void attention_forward(const AttentionParams& p) {
  if (p.batch * p.num_heads * p.seqlen_q * p.head_dim == 0) return;
  if (is_decoding(p)) return decode(p);
  const Split split(p);
  dispatch_floating(p.dtype, "attention_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(0, split.units, 1, [&](int64_t begin, int64_t end) {
      Forward<T> forward(p, split);
      for (int64_t unit = begin; unit < end; ++unit) forward.run(unit);
    });
    if (split.parts == 1) return;
    parallel_for(0, p.batch * p.num_heads * p.seqlen_q, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) combine<T>(p, split.parts, row);
    });
  });
}

}  // namespace ergon::kernels::cpu
