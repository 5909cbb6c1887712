#pragma once

// What attention's forward and backward do with a block of rows: bring them into place, multiply them, and
// change scores as bias, ALiBi, cap and dropout ask.

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/convert.h"
#include "core/half.h"
#include "kernels/cpu/attention_item.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/workspace.h"

namespace ergon::kernels::cpu::attention_detail {

using gemm_detail::kTileM;
using gemm_detail::kTileN;

inline thread_local Workspace thread_workspace;

inline constexpr int64_t kRun = 16;  // elements that loops over scores take at a time

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The index-th of `count` in the order first, last, second, last but one, ...: runs of equal length are about
// equal work where it grows with the index, as with causal scores.
inline int64_t folded(int64_t index, int64_t count) {
  return index % 2 == 0 ? index / 2 : count - 1 - index / 2;
}

// target[i] = scale * source[i] for i < n
template <class T, class Acc>
void load_scaled(const T* source, int64_t n, Acc scale, Acc* target) {
  int64_t i = 0;
  for (; i + kLanes<Acc> <= n; i += kLanes<Acc>) store(target + i, load(source + i) * scale);
  for (; i < n; ++i) target[i] = convert<Acc>(source[i]) * scale;
}

// The same on the way back; the source is scaled too where it is wider.
template <class T, class Acc>
void store_scaled(Acc* source, int64_t n, Acc scale, T* target) {
  if constexpr (std::is_same_v<T, Acc>) {
    load_scaled(source, n, scale, target);
  } else {
    load_scaled(source, n, scale, source);
    convert_run(source, target, n);
  }
}

// exp(x - shift) / 2^residual, and zero for x = -infinity. The difference comes first: of large numbers,
// products with log2(e) would differ by more than the scores are wrong.
template <class Acc>
inline constexpr Acc kLog2E = static_cast<Acc>(1.4426950408889634074);
template <class Acc>
inline Acc exp_shifted(Acc x, Acc shift, Acc residual = 0) {
  return vexp2_or_zero((x - shift) * kLog2E<Acc> - residual);
}

// The largest of n numbers, NaN aside; n is a multiple of kLanes.
template <class Acc>
Acc largest(const Acc* x, int64_t n) {
  const auto larger = [](const auto& a, const auto& b) { return b > a ? b : a; };
  Vec<Acc> result = load(x);
  for (int64_t i = kLanes<Acc>; i < n; i += kLanes<Acc>) result = larger(result, load(x + i));
  return reduce_lanes<Acc>(result, larger);
}

// softmax_lse of a row, and what its rounding takes away; -infinity and 0 without keys.
template <class Acc>
void store_lse(const AttentionParams& p, int64_t row, Acc max, Acc sum) {
  if (p.softmax_lse == nullptr) return;
  const double exact = static_cast<double>(max) + static_cast<double>(std::log(sum));
  const Acc lse = static_cast<Acc>(exact);
  static_cast<Acc*>(p.softmax_lse)[row] = lse;
  if (p.softmax_lse_residual == nullptr) return;
  p.softmax_lse_residual[row] = sum == 0 ? 0.0f : static_cast<float>(exact - static_cast<double>(lse));
}

// sum(a * b)
template <class T, class Acc>
Acc dot(const Acc* a, const T* b, int64_t n) {
  Vec<Acc> sum{};
  int64_t i = 0;
  for (; i + kLanes<Acc> <= n; i += kLanes<Acc>) sum += load(a + i) * load(b + i);
  Acc result = reduce_lanes<Acc>(sum, [](const auto& x, const auto& y) { return x + y; });
  for (; i < n; ++i) result += a[i] * convert<Acc>(b[i]);
  return result;
}

// A block of rows in scratch memory: (rows, width) of the arithmetic type, width whole vectors of which only
// the first head_dim elements mean something.
template <class Acc>
struct Block {
  Acc* data;
  int64_t width;

  Acc* operator[](int64_t i) const { return data + i * width; }
};

// f(i, row i) for a range of rows that lie apart in memory: short runs of it, which the hardware does not see
// coming, so that the row kAhead further on is asked for.
template <bool kWrite, class T, class F>
void for_rows_apart(const Rows<T>& rows, Range range, int64_t head_dim, F&& f) {
  constexpr int64_t kAhead = 12, kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = range.begin; i < range.end; ++i) {
    if (i + kAhead < range.end) {
      const T* const ahead = rows[i + kAhead];
      for (int64_t d = 0; d < head_dim; d += kLine) __builtin_prefetch(ahead + d, kWrite);
    }
    f(i, rows[i]);
  }
}

template <class T, class Acc>
void gather(const Rows<const T>& source, Range rows, int64_t head_dim, const Block<Acc>& target,
            Acc scale = 1) {
  for_rows_apart<false>(source, rows, head_dim, [&](int64_t i, const T* row) {
    load_scaled(row, head_dim, scale, target[i - rows.begin]);
  });
}

template <class T, class Acc>
void scatter(const Block<Acc>& source, Range rows, int64_t head_dim, const Rows<T>& target, Acc scale = 1) {
  for_rows_apart<true>(target, rows, head_dim, [&](int64_t i, T* row) {
    store_scaled(source[i - rows.begin], head_dim, scale, row);
  });
}

// The transpose of a block's first `rows` rows as B of a product: (rows / kTileN, head_dim, kTileN).
template <class Acc>
void pack_transposed(const Block<Acc>& block, int64_t rows, int64_t head_dim, Acc* panels) {
  for (int64_t j = 0; j < rows; j += kTileN<Acc>) {
    const int lanes = static_cast<int>(std::min<int64_t>(kTileN<Acc>, rows - j));
    gemm_detail::pack_panel(gemm_detail::Panel<Acc>{block[j], block.width, 1, lanes, head_dim}, kTileN<Acc>,
                            panels + j * head_dim);
  }
}

// result (rows, ...) = a (rows, head_dim) times columns [columns.begin, round_up(columns.end, kLanes)) of
// panels; columns.begin is a multiple of kTileN, result's row stride `ld`.
template <class Acc>
void multiply_panels(const Acc* a, int64_t a_stride, int64_t rows, int64_t head_dim, const Acc* panels,
                     Range columns, Acc* result, int64_t ld) {
  gemm_detail::multiply_tiles<Acc>({.M = rows,
                                    .N = round_up(columns.end, kLanes<Acc>) - columns.begin,
                                    .K = head_dim,
                                    .a = a,
                                    .row_stride = a_stride,
                                    .col_stride = 1,
                                    .b = panels + columns.begin * head_dim,
                                    .ldb = kTileN<Acc>,
                                    .panel_stride = head_dim * kTileN<Acc>,
                                    .c = result + columns.begin,
                                    .ldc = ld});
}

// target (rows, width) += a (rows, depth) times block (depth, width); a by any strides.
template <class Acc>
void accumulate_product(const Acc* a, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t depth,
                        const Acc* block, const Block<Acc>& target) {
  gemm_detail::multiply_tiles<Acc>({.M = rows,
                                    .N = target.width,
                                    .K = depth,
                                    .a = a,
                                    .row_stride = row_stride,
                                    .col_stride = col_stride,
                                    .b = block,
                                    .ldb = target.width,
                                    .panel_stride = kTileN<Acc>,
                                    .c = target.data,
                                    .ldc = target.width,
                                    .accumulate = true});
}

// What kTileM queries or fewer, a strip, see of a block of keys, as columns of their scores: those that one
// of them sees, the same from a whole panel on, and, in whole runs, those that products with the scores read.
struct Columns {
  Range some, seen, read;

  // The columns that are read go on to the next multiple of `strip` on both sides, if that is in the block.
  template <class Acc>
  static Columns of(const Item& item, Range queries, Range keys, int64_t block, int64_t strip = 1) {
    const Range some = item.keys_of(queries).within(keys).minus(keys.begin);
    const int64_t panel = some.begin / kTileN<Acc> * kTileN<Acc>;
    return {some,
            {panel, some.end},
            {std::min(panel, some.begin / strip * strip / kRun * kRun),
             std::min(round_up(round_up(some.end, strip), kRun), block)}};
  }
};

// The runs in which a query sees one of the columns.
inline Range runs_of(Range visible) {
  if (visible.empty()) return {visible.begin / kRun * kRun, visible.begin / kRun * kRun};
  return {visible.begin / kRun * kRun, round_up(visible.end, kRun)};
}

// The largest of some runs of scores, NaN aside.
template <class Acc>
Acc largest_of(const Acc* scores, Range runs) {
  if (runs.empty()) return -std::numeric_limits<Acc>::infinity();
  return largest(scores + runs.begin, runs.end - runs.begin);
}

// scores = exp(scores - max) in some runs; returns their sum. A max of -infinity: nothing is seen, or NaN.
template <class Acc>
Acc exponentiate(Acc* scores, Range runs, Acc max) {
  const Acc shift = max == -std::numeric_limits<Acc>::infinity() ? Acc(0) : max;
  Vec<Acc> sums{};
  for (int64_t j = runs.begin; j < runs.end; j += kLanes<Acc>) {
#pragma omp simd
    for (int64_t i = j; i < j + kLanes<Acc>; ++i) scores[i] = exp_shifted(scores[i], shift);
    sums += load(scores + j);
  }
  return reduce_lanes<Acc>(sums, [](const auto& a, const auto& b) { return a + b; });
}

// row[j] = value in the runs of the visible columns for columns outside of these
template <class Acc>
void fill_edges(Acc* row, Range visible, Acc value) {
  if (visible.empty()) return;
  const Range runs = runs_of(visible);
  const auto fill = [&](int64_t run) {
#pragma omp simd
    for (int64_t j = run; j < run + kRun; ++j)
      row[j] = j >= visible.begin && j < visible.end ? row[j] : value;
  };
  if (runs.begin < visible.begin) fill(runs.begin);
  if (visible.end < runs.end) fill(runs.end - kRun);
}

// row[j] = 0 for columns that are read outside of the runs of the visible ones
template <class Acc>
void clear_outside(Acc* row, Range visible, Range read) {
  const Range runs = runs_of(visible);
  for (const Range& outside :
       {Range{read.begin, std::min(runs.begin, read.end)}, Range{std::max(runs.end, read.begin), read.end}}) {
    for (int64_t j = outside.begin; j < outside.end; j += kLanes<Acc>) store(row + j, Vec<Acc>{});
  }
}

// What becomes of the scores of one head of one item between the product of q and k and the softmax, and of
// probabilities after it. Rows of scores are indexed by key - first_key.
template <class T>
class ScoreRules {
  using Acc = accumulate_t<T>;

 public:
  ScoreRules(const AttentionParams& params, const Item& item, int64_t head)
      : caps(params.softcap > 0), drops(params.dropout_p > 0), p_(params), item_(item), head_(head) {}

  // The scores of query i for keys [keys.begin, keys.end) of a block that begins with first_key. cap_slope,
  // where it is given and there is a cap, gets the derivative of the capped score.
  void apply(Acc* scores, int64_t i, Range keys, int64_t first_key, Acc* cap_slope = nullptr) const {
    if (caps) cap(scores, keys, cap_slope);
    if (p_.bias.data != nullptr) {
      const T* bias = static_cast<const T*>(p_.bias.data) + item_.batch * p_.bias.batch_stride
                      + head_ * p_.bias.head_stride + i * p_.bias.q_stride + first_key * p_.bias.k_stride;
      for (int64_t j = keys.begin; j < keys.end; ++j) scores[j] += convert<Acc>(bias[j * p_.bias.k_stride]);
    }
    if (p_.alibi_slopes != nullptr) {
      const Acc slope = static_cast<Acc>(p_.alibi_slopes[head_]);
      const int64_t beside = i + item_.diagonal() - first_key;
      for (int64_t j = keys.begin; j < keys.end; ++j)
        scores[j] -= slope * static_cast<Acc>(std::abs(beside - j));
    }
  }

  // probabilities[j] *= factors[j], which are set
  void drop(Acc* probabilities, int64_t i, Range keys, int64_t first_key, Acc* factors) const {
    dropout_factors(i, keys, first_key, factors);
    for (int64_t j = keys.begin; j < keys.end; ++j) probabilities[j] *= factors[j];
  }

  const bool caps, drops;

 private:
  static constexpr int64_t kWords = 64;  // of one philox_words

  // factors[j] = 0 for what is dropped, else 1 / (1 - dropout_p); first_key is a multiple of 4.
  void dropout_factors(int64_t i, Range keys, int64_t first_key, Acc* factors) const {
    const auto row = static_cast<std::uint64_t>(((item_.batch * p_.num_heads + head_) * p_.seqlen_q + i)
                                                * round_up(p_.seqlen_k, 4));
    // uniform_from_bits(word) = (word >> 8) / 2^24, compared without rounding p.
    const auto threshold = static_cast<std::int32_t>(std::ceil(p_.dropout_p * 0x1p24));
    const Acc scale = static_cast<Acc>(1 / (1 - p_.dropout_p));
    for (int64_t j = keys.begin / 4 * 4; j < keys.end; j += kWords) {
      std::uint32_t words[kWords];
      philox_words(p_.dropout_stream.seed,
                   p_.dropout_stream.offset + (row + static_cast<std::uint64_t>(first_key + j)) / 4, words);
      const int64_t count = std::min(kWords, keys.end - j);
      for (int64_t w = 0; w < count; ++w)
        factors[j + w] = static_cast<std::int32_t>(words[w] >> 8) >= threshold ? scale : Acc(0);
    }
  }

  void cap(Acc* scores, Range keys, Acc* cap_slope) const {
    const Acc softcap = static_cast<Acc>(p_.softcap), inverse = static_cast<Acc>(1 / p_.softcap);
    for (int64_t j = keys.begin; j < keys.end; ++j) scores[j] = vtanh(scores[j] * inverse);
    if (cap_slope != nullptr)
      for (int64_t j = keys.begin; j < keys.end; ++j) cap_slope[j] = 1 - scores[j] * scores[j];
    for (int64_t j = keys.begin; j < keys.end; ++j) scores[j] *= softcap;
  }

  const AttentionParams& p_;
  const Item& item_;
  int64_t head_;
};

}  // namespace ergon::kernels::cpu::attention_detail
