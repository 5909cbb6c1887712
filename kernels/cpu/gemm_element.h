#pragma once

// What the register tile multiplies: elements of fp32 or f64, or pairs of bf16.

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "kernels/cpu/simd.h"

namespace ergon::kernels::cpu {

namespace gemm_detail {

// The bits of two neighbours along K. Rows of an odd number of bf16 are multiples of 2 bytes apart, not of 4.
struct bf16x2 {
  std::uint16_t first, second;
};

}  // namespace gemm_detail

template <>
struct Simd<gemm_detail::bf16x2> {
  static constexpr int kLanes = kVectorBytes / 4;
  using Vec = Words;
};

namespace gemm_detail {

template <class E>
struct ElementTraits {
  using Sum = E;
  using Source = E;                 // of operands that need no conversion
  static constexpr int kDepth = 1;  // neighbours along K in an element
};
template <>
struct ElementTraits<bf16x2> {
  using Sum = float;
  using Source = bf16;
  static constexpr int kDepth = 2;
};
template <class E>
using Sum = typename ElementTraits<E>::Sum;
template <class E>
using Source = typename ElementTraits<E>::Source;
template <class E>
inline constexpr int kDepth = ElementTraits<E>::kDepth;

inline Words load(const bf16x2* source) {
  Words v;
  std::memcpy(&v, source, sizeof v);
  return v;
}
inline void store(bf16x2* target, Words v) { std::memcpy(target, &v, sizeof v); }
using cpu::load;
using cpu::store;
using std::int64_t;

// --- packing: an element from kDepth<E> neighbours along K, which lie k_stride apart ---

// The element of one lane; with pairs, n == 1 makes the second of them 0.
template <class E, class S>
inline E element(const S* source, int64_t k_stride, int64_t n) {
  if constexpr (kDepth<E> == 1) {
    return static_cast<E>(*source);
  } else {
    const std::uint16_t zero = 0, second = n == 1 ? zero : std::bit_cast<std::uint16_t>(source[k_stride]);
    return {std::bit_cast<std::uint16_t>(*source), second};
  }
}

// Those of kLanes<E> lanes side by side in memory.
template <class E, class S>
inline Vec<E> load_across(const S* source, int64_t k_stride) {
  if constexpr (kDepth<E> == 1) {
    return load(source);
  } else {
    return load_words(source) | load_words(source + k_stride) << 16;
  }
}

// kLanes<E> of one lane that is contiguous along K.
template <class E, class S>
inline Vec<E> load_along(const S* source) {
  if constexpr (kDepth<E> == 1) {
    return load(source);
  } else {
    return load(reinterpret_cast<const bf16x2*>(source));
  }
}

// Of them, what the first n < kLanes<E> * kDepth<E> numbers make, the rest zero.
template <class E, class S>
inline Vec<E> load_partial(const S* source, int64_t n) {
  E elements[kLanes<E>] = {};
  for (int64_t i = 0; i < n; i += kDepth<E>) elements[i / kDepth<E>] = element<E>(source + i, 1, n - i);
  return load(elements);
}

// --- arithmetic ---

// sum + a * b
template <class T>
inline Vec<T> multiply_add(T a, Vec<T> b, Vec<T> sum) {
  return sum + a * b;
}

#ifdef __AVX512BF16__
// sum + a.first * b.first + a.second * b.second, rounded twice; subnormal numbers are zero on the way in and
// out.
inline Vec<float> multiply_add(bf16x2 a, Words b, Vec<float> sum) {
  const __m512i repeated = _mm512_set1_epi32(std::bit_cast<int>(a));
  return std::bit_cast<Vec<float>>(_mm512_dpbf16_ps(
      std::bit_cast<__m512>(sum), std::bit_cast<__m512bh>(repeated), std::bit_cast<__m512bh>(b)));
}
#endif

}  // namespace gemm_detail
}  // namespace ergon::kernels::cpu
