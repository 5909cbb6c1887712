#pragma once

// Sum, maximum and minimum of a contiguous run, in an order that depends on its length alone. Halves are
// converted in registers and reduced in float.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/convert.h"
#include "kernels/cpu/vector_loop.h"
#include "kernels/reduce.h"

namespace ergon::kernels::cpu {

// What max and min make of NaN. Skipping it takes one instruction in place of four.
enum class NanMode { propagate, skip };

// What op of no elements is.
template <class T>
constexpr T identity(ReduceOp op) {
  using Limits = std::numeric_limits<T>;
  if (op == ReduceOp::sum) return T(0);
  if constexpr (Limits::has_infinity) return op == ReduceOp::max ? -Limits::infinity() : Limits::infinity();
  return op == ReduceOp::max ? Limits::lowest() : Limits::max();
}

namespace row_reduce_detail {

// 64 bytes: what the compiler keeps in one AVX-512 register, two of AVX or four of SSE. Spelled out, because
// without it the order of additions would depend on the machine, or the loop not be vectorised at all.
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(64)));
  static constexpr int lanes = 64 / sizeof(T);
};

// swapped = v with lanes i and i ^ step in each other's place. (No vector goes by value: without AVX-512 that
// has no stable ABI.)
template <int step, class V, std::size_t... kIndex>
inline void swap_lanes(const V& v, V& swapped, std::index_sequence<kIndex...>) {
  swapped = __builtin_shufflevector(v, v, static_cast<int>(kIndex ^ step)...);
}

// so_far = op(so_far, x), of scalars or lane by lane.
template <ReduceOp op, NanMode mode, class V>
inline void combine_into(V& so_far, const V& x) {
  constexpr bool kSkip = mode == NanMode::skip;
  if constexpr (op == ReduceOp::sum) {
    so_far += x;
  } else if constexpr (op == ReduceOp::max) {
    so_far = (kSkip ? x > so_far : (x > so_far) | (x != x)) ? x : so_far;
  } else {
    so_far = (kSkip ? x < so_far : (x < so_far) | (x != x)) ? x : so_far;
  }
}

// op over all lanes, halves against each other, into lane 0.
template <ReduceOp op, NanMode mode, class T, int step = VectorOf<T>::lanes / 2, class V>
inline T fold(V& v) {
  if constexpr (step == 0) {
    return v[0];
  } else {
    V swapped;
    swap_lanes<step>(v, swapped, std::make_index_sequence<VectorOf<T>::lanes>{});
    combine_into<op, mode>(v, swapped);
    return fold<op, mode, T, step / 2>(v);
  }
}

template <class V, class S, int kCount>
inline void load_into(V (&v)[kCount], const S* x) {
  if constexpr (is_half(dtype_of<S>())) {
    constexpr int kParts = static_cast<int>(sizeof v) / kVectorBytes;
    Vec<float> parts[kParts];
    for (int i = 0; i < kParts; ++i) parts[i] = load(x + i * kLanes<float>);
    std::memcpy(&v, parts, sizeof v);
  } else {
    std::memcpy(&v, x, sizeof v);
  }
}

// Up to a few thousand elements, in four vectors of partial results.
template <ReduceOp op, NanMode mode, class S, class T = compute_t<S>>
[[gnu::always_inline]] inline T reduce_short(const S* x, std::int64_t n) {
  using V = typename VectorOf<T>::type;
  constexpr int kWide = VectorOf<T>::lanes;
  V parts[4];
  for (V& part : parts) part = V{} + identity<T>(op);
  std::int64_t i = 0;
  for (; i + 4 * kWide <= n; i += 4 * kWide) {
    V values[4];
    load_into(values, x + i);
    for (int k = 0; k < 4; ++k) combine_into<op, mode>(parts[k], values[k]);
  }
  for (; i + kWide <= n; i += kWide) {
    V value[1];
    load_into(value, x + i);
    combine_into<op, mode>(parts[0], value[0]);
  }
  combine_into<op, mode>(parts[0], parts[1]);
  combine_into<op, mode>(parts[2], parts[3]);
  combine_into<op, mode>(parts[0], parts[2]);
  if (i < n) {
    T rest[kWide];
    for (int k = 0; k < kWide; ++k) rest[k] = i + k < n ? convert<T>(x[i + k]) : identity<T>(op);
    V value[1];
    load_into(value, rest);
    combine_into<op, mode>(parts[0], value[0]);
  }
  return fold<op, mode, T>(parts[0]);
}

}  // namespace row_reduce_detail

// op(so_far, x), of scalars or of vectors no wider than a register.
template <ReduceOp op, NanMode mode = NanMode::propagate, class V>
inline V combine(V so_far, V x) {
  row_reduce_detail::combine_into<op, mode>(so_far, x);
  return so_far;
}

// op over x[0..n). On its way into a sum an element is rounded at most 25 times, 40 times in double, and once
// more for every doubling of n beyond 1024.
template <ReduceOp op, NanMode mode = NanMode::propagate, class S>
inline compute_t<S> reduce_run(const S* x, std::int64_t n) {
  if (n <= 1024) return row_reduce_detail::reduce_short<op, mode>(x, n);
  const std::int64_t half = (n / 2 + 1023) / 1024 * 1024;
  return combine<op, mode>(reduce_run<op, mode>(x, half), reduce_run<op, mode>(x + half, n - half));
}

}  // namespace ergon::kernels::cpu
