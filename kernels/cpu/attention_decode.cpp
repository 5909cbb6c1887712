// With few queries there is so little to compute that keys and values should come as fast as memory gives
// them, which is in order. In a cache the heads of a token lie side by side: a thread goes through the tokens
// of its part and takes all heads of each, as those of one head alone are short pieces far from each other.
// The parts' results are added up in order, as in Flash-Decoding (Dao et al. 2023).

#include "kernels/cpu/attention_decode.h"

#include <limits>

#include "core/parallel.h"
#include "kernels/cpu/attention_parts.h"

namespace ergon::kernels::cpu::attention_detail {
namespace {

// Into how many parts the keys of an item are split: as many as make kUnits units of work, but no more than
// there are kLeast keys for. It does not depend on the number of threads, and so the results do not.
int64_t parts_of(const AttentionParams& p) {
  constexpr int64_t kUnits = 64, kLeast = 64;
  return std::clamp<int64_t>(kUnits / std::max<int64_t>(p.batch, 1), 1,
                             std::max<int64_t>(p.seqlen_k / kLeast, 1));
}

// One part of one item's keys, with all heads.
template <class T>
class Part {
  using Acc = accumulate_t<T>;

 public:
  Part(const AttentionParams& params, int64_t batch, int64_t part, int64_t parts)
      : p_(params), item_(params, batch), part_(part), parts_(parts), group_(p_.num_heads / p_.num_heads_kv) {
    const int64_t keys = round_up((item_.seqlen_k + parts - 1) / parts, kRun);
    keys_ = Range{part * keys, (part + 1) * keys}.within({0, item_.seqlen_k});
    seen_ = item_.seqlen_q == 0 ? Range{0, 0} : item_.keys_of(Range{0, item_.seqlen_q}).within(keys_);
    stride_ = keys;
    const int64_t rows = p_.num_heads * item_.seqlen_q, width = round_up(p_.head_dim, kRun);
    q_ = {thread_workspace.reserve<Acc>(rows * (width + stride_) + stride_), width};
    scores_ = q_.data + rows * width;
    factors_ = scores_ + rows * stride_;
  }

  void run() {
    for (int64_t head = 0; head < p_.num_heads; ++head) {
      gather(item_.query_rows<const T>(p_.q, head), {0, item_.seqlen_q}, p_.head_dim,
             Block<Acc>{q_[row_of(head)], q_.width}, static_cast<Acc>(p_.softmax_scale));
    }
    for_heads_of_keys(p_.k, [&](int64_t head, int64_t i, int64_t column, const T* k) {
      const int64_t row = row_of(head) + i;
      scores_[row * stride_ + column] = dot(q_[row], k, p_.head_dim);
    });
    for (int64_t head = 0; head < p_.num_heads; ++head) {
      const ScoreRules<T> rules(p_, item_, head);
      for (int64_t i = 0; i < item_.seqlen_q; ++i) take_softmax(rules, head, i);
    }
    for_heads_of_keys(p_.v, [&](int64_t head, int64_t i, int64_t column, const T* v) {
      add_scaled(scores_[(row_of(head) + i) * stride_ + column], v, p_.head_dim, result(head, i));
    });
  }

 private:
  int64_t row_of(int64_t head) const { return head * item_.seqlen_q; }
  Acc* result(int64_t head, int64_t i) const { return part_of<Acc>(p_, parts_, item_.batch, head, i, part_); }

  // f(head, query, column of its scores, row of k or v) for all that belong together, in the order of a
  // cache.
  template <class F>
  void for_heads_of_keys(const AttentionOperand& operand, F&& f) {
    for (int64_t key = seen_.begin; key < seen_.end; ++key) {
      for (int64_t head_kv = 0; head_kv < p_.num_heads_kv; ++head_kv) {
        const T* const data = item_.key_rows<const T>(operand, head_kv)[key];
        for (int64_t head = head_kv * group_; head < (head_kv + 1) * group_; ++head)
          for (int64_t i = 0; i < item_.seqlen_q; ++i) f(head, i, key - keys_.begin, data);
      }
    }
  }

  // Turns a row's scores into exp(score - max), zero where it is masked; leaves max, their sum, and no
  // result.
  void take_softmax(const ScoreRules<T>& rules, int64_t head, int64_t i) {
    Acc *const scores = scores_ + (row_of(head) + i) * stride_, *const to = result(head, i);
    const Range visible = item_.keys_of(i).within(keys_).minus(keys_.begin), runs = runs_of(visible);
    rules.apply(scores, i, visible, keys_.begin);
    fill_edges(scores, visible, -std::numeric_limits<Acc>::infinity());
    const Acc max = largest_of(scores, runs);
    std::fill_n(to, p_.head_dim, Acc(0));
    to[p_.head_dim] = max, to[p_.head_dim + 1] = exponentiate(scores, runs, max);
    if (rules.drops) rules.drop(scores, i, visible, keys_.begin, factors_);
    clear_outside(scores, visible, {0, stride_});
  }

  const AttentionParams& p_;
  const Item item_;
  const int64_t part_, parts_, group_;
  Range keys_, seen_;  // of the part, and those of them that some query sees
  int64_t stride_;
  Block<Acc> q_;  // (num_heads * seqlen_q); q times the scale
  Acc* scores_;   // (num_heads * seqlen_q, stride)
  Acc* factors_;  // (stride): of a row's dropout
};

}  // namespace

bool is_decoding(const AttentionParams& p) {
  constexpr int64_t kMostRows = 4;       // of a key/value head; with more, products take longer than memory
  constexpr int64_t kKeysPerQuery = 16;  // unlike in training, where there are as many keys as queries
  return p.seqlen_q * (p.num_heads / std::max<int64_t>(p.num_heads_kv, 1)) <= kMostRows
         && p.seqlen_k >= kKeysPerQuery * p.seqlen_q;
}

std::int64_t decoding_workspace(const AttentionParams& p) { return parts_workspace(p, parts_of(p)); }

void decode(const AttentionParams& p) {
  dispatch_floating(p.dtype, "attention_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t parts = parts_of(p);
    parallel_for(0, p.batch * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) Part<T>(p, unit / parts, unit % parts, parts).run();
    });
    constexpr int64_t kGrain = 64;  // of rows, a few microseconds
    parallel_for(0, p.batch * p.num_heads * p.seqlen_q, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) combine<T>(p, parts, row);
    });
  });
}

}  // namespace ergon::kernels::cpu::attention_detail
