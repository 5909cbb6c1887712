#pragma once

// Keys split into parts, each of which leaves a result for every query; the sum of the parts, in their order.

#include <limits>

#include "kernels/cpu/attention_block.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu::attention_detail {

// What a part leaves of a row, in the workspace (batch, num_heads, seqlen_q, parts, head_dim + 2): the sum of
// exp(score - max) * v, max, and the sum of exp(score - max).
template <class Acc>
Acc* part_of(const AttentionParams& p, int64_t parts, int64_t batch, int64_t head, int64_t i, int64_t part) {
  const int64_t row = (batch * p.num_heads + head) * p.seqlen_q + i;
  return static_cast<Acc*>(p.workspace) + (row * parts + part) * (p.head_dim + 2);
}

// Its bytes.
inline int64_t parts_workspace(const AttentionParams& p, int64_t parts) {
  return p.batch * p.num_heads * p.seqlen_q * parts * (p.head_dim + 2)
         * std::max<int64_t>(size_of(p.dtype), sizeof(float));
}

// out += factor * v
template <class T, class Acc>
void add_scaled(Acc factor, const T* v, int64_t n, Acc* out) {
  for_each_vector<Acc>(
      n, [&](int64_t d, auto at) { at.store(out + d, at.load(out + d) + factor * at.load(v + d)); });
}

// A row's results from those of its parts.
template <class T>
void combine(const AttentionParams& p, int64_t parts, int64_t row) {
  using Acc = accumulate_t<T>;
  const int64_t head = row / p.seqlen_q % p.num_heads, i = row % p.seqlen_q, stride = p.head_dim + 2;
  const Item item(p, row / p.seqlen_q / p.num_heads);
  if (i >= item.seqlen_q) return;
  const Acc* const first = part_of<Acc>(p, parts, item.batch, head, i, 0);
  Acc max = -std::numeric_limits<Acc>::infinity(), sum = 0;
  for (int64_t s = 0; s < parts; ++s) max = std::max(max, first[s * stride + p.head_dim]);
  Acc* const out = thread_workspace.reserve<Acc>(p.head_dim);
  std::fill_n(out, p.head_dim, Acc(0));
  for (int64_t s = 0; s < parts; ++s) {
    const Acc* const part = first + s * stride;
    if (part[p.head_dim + 1] == 0) continue;  // saw no key
    const Acc weight = std::exp(part[p.head_dim] - max);
    sum += weight * part[p.head_dim + 1];
    add_scaled(weight, part, p.head_dim, out);
  }
  store_scaled(out, p.head_dim, sum == 0 ? Acc(0) : 1 / sum, item.query_rows<T>(p.o, head)[i]);
  store_lse(p, item.statistics(head) + i, max, sum);
}

}  // namespace ergon::kernels::cpu::attention_detail
