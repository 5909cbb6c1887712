#pragma once

// Loops over runs of elements of any floating-point storage type, computed in T (float or double) a vector at
// a time: halves are converted on their way into and out of registers.
//
//   for_each_vector<float>(n, [&](std::int64_t i, auto at) { at.store(y + i, at.load(x + i) * scale); });

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/half.h"
#include "kernels/cpu/simd.h"

namespace ergon::kernels::cpu {

// What elements of type S are computed in: float for halves, their own type for the others.
template <class S>
using compute_t = std::conditional_t<is_half(dtype_of<S>()), float, S>;

// Where a loop stands: at a whole vector. Part tells four in a row apart, so that each has a sum of its own.
template <class T, int kPart_>
struct VectorAt {
  static constexpr int kPart = kPart_;

  template <class S>
  static Vec<T> load(const S* x) {
    return cpu::load(x);
  }
  template <class S>
  static void store(S* y, Vec<T> v) {
    cpu::store(y, v);
  }
  // v in the lanes that have an element, `other` in the rest.
  static Vec<T> keep(Vec<T> v, T) { return v; }
};

// At the last elements, fewer than make a vector. Lanes beyond them are loaded as 0 and not stored.
template <class T>
struct LastVectorAt {
  static constexpr int kPart = 0;
  int count;

  template <class S>
  Vec<T> load(const S* x) const {
    S values[kLanes<T>] = {};
    std::memcpy(static_cast<void*>(values), x, static_cast<std::size_t>(count) * sizeof(S));
    return cpu::load(values);
  }
  template <class S>
  void store(S* y, Vec<T> v) const {
    S values[kLanes<T>];
    cpu::store(values, v);
    std::memcpy(static_cast<void*>(y), values, static_cast<std::size_t>(count) * sizeof(S));
  }
  Vec<T> keep(Vec<T> v, T other) const {
    for (int i = count; i < kLanes<T>; ++i) v[i] = other;
    return v;
  }
};

// Calls f(i, at) for every vector of [0, n), and for what is left.
template <class T, class F>
inline void for_each_vector(std::int64_t n, F f) {
  constexpr int kStep = kLanes<T>;
  std::int64_t i = 0;
  for (; i + 4 * kStep <= n; i += 4 * kStep) {
    f(i, VectorAt<T, 0>{});
    f(i + kStep, VectorAt<T, 1>{});
    f(i + 2 * kStep, VectorAt<T, 2>{});
    f(i + 3 * kStep, VectorAt<T, 3>{});
  }
  for (; i + kStep <= n; i += kStep) f(i, VectorAt<T, 0>{});
  if (i < n) f(i, LastVectorAt<T>{static_cast<int>(n - i)});
}

// A sum over such a loop, in an order that depends on n and the width of vectors alone.
template <class T>
class VectorSum {
 public:
  template <class At>
  void add(At at, Vec<T> v) {
    parts_[At::kPart] += at.keep(v, T(0));
  }
  T total() const {
    const Vec<T> sum = (parts_[0] + parts_[1]) + (parts_[2] + parts_[3]);
    return reduce_lanes<T>(sum, [](Vec<T> a, Vec<T> b) { return a + b; });
  }

 private:
  Vec<T> parts_[4] = {};
};

}  // namespace ergon::kernels::cpu
