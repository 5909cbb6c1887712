#pragma once

// exp, sigmoid and activations for results that are rounded to bf16 or f16, of vectors in registers. They
// compute in float, as exactly as such a result needs: half a unit of its last place is 2^-9 to 2^-8 of it in
// bf16, 2^-12 to 2^-11 in f16.
//
//   half_...       error, d being the result      where; below, the result lies between 0 and
//   exp2           2^-18 d                        x >= -126; 2^-126
//   exp            2^-17 d                        x >= -87; 1.7e-38
//   sigmoid        2^-16 d                        x >= -87; 1.7e-38
//   silu           2^-16 d                        x >= -87; 1.7e-38 x
//   gelu_tanh      2^-15 d                        x >= -8; gelu_tanh(-8) = -3.2e-21
//   gelu_erf       2^-16 d                        x >= -5.7; gelu(-5.7) = -3.5e-8
//   silu_grad      2^-15 s (1 + |x| (1 - s))      x >= -87; 1.7e-38 x. s = sigmoid(x)
//   gelu_tanh_grad 2^-15 s (1 + |x| v (1 - s))    x >= -8; -1e-19. s = sigmoid(2 u), v = d(2 u) / dx
//   gelu_erf_grad  2^-15 d + 2^-20 Phi(-|x|)      x >= -5.7; gelu'(-5.7) = -2.1e-7
//
// The bound of exp2 is its polynomial's, 2^-18.4, and float's roundings; exp's adds the rounding of
// x log2(e), at most 2^-18. The others follow from these with a rounding or two; in the derivatives 1 - s has
// an absolute error of 2^-24 besides, which factors x and x v below 2^5 make 2^-19 of. NaN gives NaN.
// tests/kernels/half_math_test.cpp holds all of it against double for every bf16 and f16.
// Always inline: GCC would call them in large loops, with vectors in memory.

#include <bit>
#include <type_traits>

#include "core/half.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec_math.h"

namespace ergon::kernels::cpu {

namespace half_math_detail {

// p[0] + p[1] x + p[2] x^2 + ...
template <std::size_t kTerms>
[[gnu::always_inline]] inline Vec<float> polynomial(const float (&p)[kTerms], Vec<float> x) {
  Vec<float> y = Vec<float>{} + p[kTerms - 1];
#pragma GCC unroll 16
  for (int i = static_cast<int>(kTerms) - 2; i >= 0; --i) y = y * x + p[i];
  return y;
}

[[gnu::always_inline]] inline Vec<float> absolute(Vec<float> x) {
  return std::bit_cast<Vec<float>>(std::bit_cast<Words>(x) & 0x7fffffff);
}

}  // namespace half_math_detail

// 2^x as 2^floor(x) * 2^f, 0 <= f <= 1.
[[gnu::always_inline]] inline Vec<float> half_exp2(Vec<float> x) {
  constexpr float kPower[] = {1.0f, 6.930448391e-01f, 2.412802313e-01f, 5.224243703e-02f, 1.342670064e-02f};
#if defined(__AVX512DQ__)  // masked, as in simd.h
  constexpr int kMinusFloor = _MM_FROUND_TO_NEG_INF;
  const __m512 f = _mm512_maskz_reduce_ps(0xffff, std::bit_cast<__m512>(x), kMinusFloor);
  const Vec<float> power = half_math_detail::polynomial(kPower, std::bit_cast<Vec<float>>(f));
  return std::bit_cast<Vec<float>>(
      _mm512_maskz_scalef_ps(0xffff, std::bit_cast<__m512>(power), std::bit_cast<__m512>(x)));
#else
  constexpr float kMagic =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  Vec<float> y = x < -126.5f ? Vec<float>{} - 126.5f : x;  // comparisons that let NaN pass
  y = y > 128.0f ? Vec<float>{} + 128.0f : y;
  const Vec<float> shifted = (y - 0.5f) + kMagic;
  const Vec<float> power = half_math_detail::polynomial(kPower, y - (shifted - kMagic));
  // Exponents of 0 and 255: the factor is 0 or infinite.
  const Words exponent = std::bit_cast<Words>(shifted) - (std::bit_cast<std::uint32_t>(kMagic) - 127);
  return power * std::bit_cast<Vec<float>>(exponent << 23);
#endif
}

[[gnu::always_inline]] inline Vec<float> half_exp(Vec<float> x) { return half_exp2(x * 1.44269504f); }

[[gnu::always_inline]] inline Vec<float> half_sigmoid(Vec<float> x) {
  return 1.0f / (1.0f + half_exp2(x * -1.44269504f));
}

[[gnu::always_inline]] inline Vec<float> half_silu(Vec<float> x) { return x * half_sigmoid(x); }
[[gnu::always_inline]] inline Vec<float> half_silu_grad(Vec<float> x) {
  const Vec<float> s = half_sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

// The formulas of activations.h.
[[gnu::always_inline]] inline Vec<float> half_gelu_tanh(Vec<float> x) {
  return x * half_sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}
[[gnu::always_inline]] inline Vec<float> half_gelu_tanh_grad(Vec<float> argument) {
  // 0 and 1 from 16 on, where x^3 could overflow.
  Vec<float> x = argument > 16.0f ? Vec<float>{} + 16.0f : argument;
  x = x < -16.0f ? Vec<float>{} - 16.0f : x;
  const Vec<float> s = half_sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
  return s + x * s * (1.0f - s) * (1.5957691216f * (1.0f + 0.134145f * x * x));
}

namespace half_math_detail {

// Phi(-t), the tail of the standard normal distribution, for t >= 0: 2^q(t), q a fit of its logarithm for
// t <= 5.7 that falls on from there.
[[gnu::always_inline]] inline Vec<float> normal_tail(Vec<float> t) {
  constexpr float kLogarithm[] = {-1.0f,
                                  -1.151212617e+00f,
                                  -4.585495912e-01f,
                                  -5.387925260e-02f,
                                  8.469259099e-03f,
                                  -9.207600665e-04f,
                                  6.035302406e-05f,
                                  -1.771746038e-06f};
  return half_exp2(polynomial(kLogarithm, t));
}

}  // namespace half_math_detail

[[gnu::always_inline]] inline Vec<float> half_gelu_erf(Vec<float> x) {
  const Vec<float> tail = half_math_detail::normal_tail(half_math_detail::absolute(x));
  return x * (x > 0.0f ? 1.0f - tail : tail);
}

// Phi(x) + x phi(x). At -t that is Phi(-t) (1 - t phi(t) / Phi(-t)), the second factor a polynomial.
[[gnu::always_inline]] inline Vec<float> half_gelu_erf_grad(Vec<float> x) {
  constexpr float kFactor[] = {1.0f,
                               -7.980477730e-01f,
                               -6.354044344e-01f,
                               -1.122986500e-01f,
                               2.357437226e-02f,
                               -3.202308017e-03f,
                               2.506410201e-04f,
                               -8.486865925e-06f};
  const Vec<float> magnitude = half_math_detail::absolute(x);
  const Vec<float> t = magnitude > 16.0f ? Vec<float>{} + 16.0f : magnitude;  // the tail is 0 from there on
  const Vec<float> low = half_math_detail::normal_tail(t) * half_math_detail::polynomial(kFactor, t);
  return x > 0.0f ? 1.0f - low : low;
}

// exp(x) for a result that is stored as S: half_exp or vexp.
template <class S, class T = accumulate_t<S>>
[[gnu::always_inline]] inline Vec<T> exp_for(Vec<accumulate_t<S>> x) {
  if constexpr (is_half(dtype_of<S>())) {
    return half_exp(x);
  } else if constexpr (std::is_same_v<T, float>) {
    return vexp(x);
  } else {
    return map_lanes<T>([](T v) { return vexp(v); }, x);
  }
}

}  // namespace ergon::kernels::cpu
