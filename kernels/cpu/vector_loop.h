#pragma once

// Loops over runs of elements of any floating-point storage type, computed in T (float or double) a vector at
// a time: halves are converted on their way into and out of registers.
//
//   for_each_vector<float>(n, [&](std::int64_t i, auto at) { at.store(y + i, at.load(x + i) * scale); });

#include <cstdint>
#include <type_traits>

#include "core/convert.h"
#include "kernels/cpu/simd.h"

namespace ergon::kernels::cpu {

// Where a loop stands: V is a Vec<T>, or T for the elements that do not fill one; kPart tells four vectors in
// a row apart, so that each has a sum of its own.
template <class V, int kPart>
struct VectorAt {
  template <class S>
  static V load(const S* x) {
    if constexpr (std::is_floating_point_v<V>) {
      return convert<V>(*x);
    } else {
      return cpu::load(x);
    }
  }
  template <class S>
  static void store(S* y, V value) {
    if constexpr (std::is_floating_point_v<V>) {
      *y = convert<S>(value);
    } else {
      cpu::store(y, value);
    }
  }
};

// Calls f(i, VectorAt) for every vector of [0, n), and for every element of what is left.
template <class T, class F>
inline void for_each_vector(std::int64_t n, F f) {
  constexpr int kStep = kLanes<T>;
  std::int64_t i = 0;
  for (; i + 4 * kStep <= n; i += 4 * kStep) {
    f(i, VectorAt<Vec<T>, 0>{});
    f(i + kStep, VectorAt<Vec<T>, 1>{});
    f(i + 2 * kStep, VectorAt<Vec<T>, 2>{});
    f(i + 3 * kStep, VectorAt<Vec<T>, 3>{});
  }
  for (; i + kStep <= n; i += kStep) f(i, VectorAt<Vec<T>, 0>{});
  for (; i < n; ++i) f(i, VectorAt<T, 0>{});
}

// A sum over such a loop, in an order that depends on n and the width of vectors alone.
template <class T>
class VectorSum {
 public:
  template <class V, int kPart>
  void add(VectorAt<V, kPart>, V value) {
    if constexpr (std::is_floating_point_v<V>) {
      rest_ += value;
    } else {
      parts_[kPart] += value;
    }
  }
  T total() const {
    const Vec<T> sum = (parts_[0] + parts_[1]) + (parts_[2] + parts_[3]);
    return reduce_lanes<T>(sum, [](Vec<T> a, Vec<T> b) { return a + b; }) + rest_;
  }

 private:
  Vec<T> parts_[4] = {};
  T rest_ = 0;
};

}  // namespace ergon::kernels::cpu
