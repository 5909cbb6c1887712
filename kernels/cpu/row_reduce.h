#pragma once

// Sum, maximum and minimum of a contiguous run, in an order that depends on its length alone.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/reduce.h"

namespace ergon::kernels::cpu {

// What max and min make of NaN. Skipping it takes one instruction in place of four.
enum class NanMode { propagate, skip };

// op(so_far, x)
template <ReduceOp op, NanMode mode = NanMode::propagate, class T>
inline T combine(T so_far, T x) {
  if constexpr (op == ReduceOp::sum) {
    return so_far + x;
  } else if constexpr (op == ReduceOp::max) {
    return ((x > so_far) | (mode == NanMode::propagate && x != x)) ? x : so_far;
  } else {
    return ((x < so_far) | (mode == NanMode::propagate && x != x)) ? x : so_far;
  }
}

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

// Lanes i and i ^ step swap.
template <class T, int step, class V, std::size_t... kIndex>
inline V swap_lanes(const V& v, std::index_sequence<kIndex...>) {
  return __builtin_shufflevector(v, v, static_cast<int>(kIndex ^ step)...);
}

// so_far = op(so_far, x), lane by lane.
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
    combine_into<op, mode>(v, swap_lanes<T, step>(v, std::make_index_sequence<VectorOf<T>::lanes>{}));
    return fold<op, mode, T, step / 2>(v);
  }
}

// Up to a few thousand elements, in four vectors of partial results.
template <ReduceOp op, NanMode mode, class T>
inline T reduce_short(const T* x, std::int64_t n) {
  using V = typename VectorOf<T>::type;
  constexpr int kLanes = VectorOf<T>::lanes;
  V parts[4];
  for (V& part : parts) part = V{} + identity<T>(op);
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    V values[4];
    std::memcpy(values, x + i, sizeof(values));
    for (int k = 0; k < 4; ++k) combine_into<op, mode>(parts[k], values[k]);
  }
  for (; i + kLanes <= n; i += kLanes) {
    V value;
    std::memcpy(&value, x + i, sizeof(value));
    combine_into<op, mode>(parts[0], value);
  }
  combine_into<op, mode>(parts[0], parts[1]);
  combine_into<op, mode>(parts[2], parts[3]);
  combine_into<op, mode>(parts[0], parts[2]);
  if (i < n) {
    V rest = V{} + identity<T>(op);
    std::memcpy(&rest, x + i, static_cast<std::size_t>(n - i) * sizeof(T));
    combine_into<op, mode>(parts[0], rest);
  }
  return fold<op, mode, T>(parts[0]);
}

}  // namespace row_reduce_detail

// op over x[0..n). On its way into a sum an element is rounded at most 25 times, 40 times in double, and once
// more for every doubling of n beyond 1024.
template <ReduceOp op, NanMode mode = NanMode::propagate, class T>
inline T reduce_run(const T* x, std::int64_t n) {
  if (n <= 1024) return row_reduce_detail::reduce_short<op, mode>(x, n);
  const std::int64_t half = (n / 2 + 1023) / 1024 * 1024;
  return combine<op, mode>(reduce_run<op, mode>(x, half), reduce_run<op, mode>(x + half, n - half));
}

}  // namespace ergon::kernels::cpu
