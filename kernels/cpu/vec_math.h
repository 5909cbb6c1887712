#pragma once

// exp, expm1, log, tanh, sigmoid and erf as straight-line scalar code: a plain loop over a row that calls
// them is vectorised by the compiler (no calls, tables or branches; selects only). vexp takes vectors of
// float too. The double overloads are libm's.
//
// Maximum error in ulp of the float result, measured on every 13th float against double
// (tests/kernels/vec_math_test.cpp walks a dense sample):
//
//   function      error    range and special values
//   exp            1.1     all x; subnormal results too; exp(-inf) = 0, overflow to inf above 88.7228
//   exp_normal     1.1     x < 88; exp(-87) = 1.6e-38 below -87
//   exp2_or_zero   1.1     x < 127.5; 0 below -125
//   expm1          1.7     all x; -1 below -17.4, inf above 88.7228
//   log            0.9     all x > 0 with subnormals; log(0) = -inf, log(x < 0) = NaN, log(inf) = inf
//   tanh           2.7     all x; exactly +-1 beyond 9.02
//   sigmoid        2.6     x > -88; below, 0 (absolute error under 1e-38)
//   erf            1.2     all x; exactly +-1 beyond 3.93
//
// NaN gives NaN, and odd functions keep the sign of zero. The polynomials are minimax fits of the remainder
// after the leading terms, their coefficients rounded to float one by one with the rest fitted again.

#include <bit>
#include <cmath>
#include <cstdint>

namespace ergon::kernels::cpu {

namespace vec_math_detail {

inline float from_bits(std::int32_t bits) { return std::bit_cast<float>(bits); }
inline std::int32_t to_bits(float x) { return std::bit_cast<std::int32_t>(x); }
inline float absolute(float x) { return from_bits(to_bits(x) & 0x7fffffff); }
// |magnitude| with the sign bit of `sign`; magnitude >= 0.
inline float with_sign(float magnitude, float sign) {
  return from_bits(to_bits(magnitude) | (to_bits(sign) & static_cast<std::int32_t>(0x80000000)));
}

// Signed integers of float's size, as many as V has floats: V is float or a vector of them.
template <class V>
struct IntegersOf {
  using type = decltype(V{} < V{});
};
template <>
struct IntegersOf<float> {
  using type = std::int32_t;
};
template <class V>
using Integers = typename IntegersOf<V>::type;

// x = n ln 2 + r with |r| <= ln(2) / 2, for |x| < 2^20.
template <class V>
struct Reduced {
  Integers<V> n;
  V r;
};
template <class V>
inline Reduced<V> reduce_by_ln2(V x) {
  constexpr float kMagic =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const V shifted = x * 1.44269504f + kMagic;
  const V n = shifted - kMagic;
  // ln 2 in two parts; the first has 9 bits, so its product with n is exact.
  return {std::bit_cast<Integers<V>>(shifted) - to_bits(kMagic), (x - n * 0.693359375f) + n * 2.12194440e-4f};
}

// exp(r) - 1 for |r| <= ln(2) / 2.
template <class V>
inline V expm1_reduced(V r) {
  V p = 1.387065742e-03f * r + 8.366261609e-03f;
  p = p * r + 4.166743532e-02f;
  p = p * r + 1.666654646e-01f;
  p = p * r + 4.999999702e-01f;
  return (r * r) * p + r;
}

// 2^n for -126 <= n <= 127.
template <class V = float>
inline V power_of_two(Integers<V> n) {
  return std::bit_cast<V>((n + 127) << 23);
}

// exp(x) for -87 < x < 88, or NaN.
inline float exp_unchecked(float x) {
  const Reduced<float> reduced = reduce_by_ln2(x);
  const float scale = power_of_two(reduced.n);
  return scale * expm1_reduced(reduced.r) + scale;
}

}  // namespace vec_math_detail

template <class V>
[[gnu::always_inline]] inline V vexp(V x) {  // GCC would call it for vectors
  using namespace vec_math_detail;
  V y = x < -105.0f ? V{} - 105.0f : x;  // comparisons written so that NaN passes
  y = y > 90.0f ? V{} + 90.0f : y;
  const Reduced<V> reduced = reduce_by_ln2(y);
  // In two factors: 2^128 and the subnormal powers have no float of their own.
  const Integers<V> half = reduced.n >> 1;
  const V p = expm1_reduced(reduced.r) + 1.0f;
  return (p * power_of_two<V>(half)) * power_of_two<V>(reduced.n - half);
}

// exp(x) for x < 88 where results below the normal numbers may be as large as 1.6e-38: vexp in fewer steps.
inline float vexp_normal(float x) {
  return vec_math_detail::exp_unchecked(x < -87.0f ? -87.0f : x);  // a comparison that lets NaN pass
}

// 2^x for x < 127.5, zero where that is below 2^-125: masked scores of -infinity give exact zeros.
inline float vexp2_or_zero(float x) {
  using namespace vec_math_detail;
  constexpr float kMagic = 12582912.0f + 127.0f;  // reduce_by_ln2's, with the bias of exponents
  const float y = x < -125.0f ? -125.0f : x;
  const float shifted = y + kMagic;
  const float f = y - (shifted - kMagic);  // |f| <= 1/2
  float p = 1.532646274e-04f;
  p = p * f + 1.339080627e-03f;
  p = p * f + 9.618505836e-03f;
  p = p * f + 5.550359935e-02f;
  p = p * f + 2.402264774e-01f;
  p = p * f + 6.931471825e-01f;
  p = p * f + 1.0f;
  const float scale = std::bit_cast<float>(std::bit_cast<std::uint32_t>(shifted) << 23);
  return x < -125.0f ? 0.0f : p * scale;
}

inline float vexpm1(float x) {
  using namespace vec_math_detail;
  float y = x < -20.0f ? -20.0f : x;
  y = y > 88.9f ? 88.9f : y;
  const Reduced<float> reduced = reduce_by_ln2(y);
  // (2^(n-1) p + (2^(n-1) - 0.5)) * 2: 2^128 would overflow where the result does not.
  const float scale = power_of_two(reduced.n - 1);
  const float result = (scale * expm1_reduced(reduced.r) + (scale - 0.5f)) * 2.0f;
  return x == 0.0f ? x : result;
}

inline float vlog(float x) {
  using namespace vec_math_detail;
  constexpr std::uint32_t kSqrtHalf = 0x3f3504f3;
  const bool subnormal = x < 1.17549435e-38f;
  const float scaled = subnormal ? x * 8388608.0f : x;
  // Unsigned, as negative x would overflow.
  const auto offset = static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(scaled) - kSqrtHalf);
  const float e = static_cast<float>(offset >> 23) - (subnormal ? 23.0f : 0.0f);
  const float f =
      from_bits((offset & 0x007fffff) + static_cast<std::int32_t>(kSqrtHalf)) - 1.0f;  // scaled = 2^e (1 + f)
  float p = -7.638189197e-02f;
  p = p * f + 1.276476383e-01f;
  p = p * f + -1.316018999e-01f;
  p = p * f + 1.420127302e-01f;
  p = p * f + -1.662331522e-01f;
  p = p * f + 2.000125051e-01f;
  p = p * f + -2.500082254e-01f;
  p = p * f + 3.333333135e-01f;
  const float square = f * f;
  float small = (f * square) * p + e * -2.12194440e-4f;
  small = small - 0.5f * square;
  float result = (f + small) + e * 0.693359375f;
  result = x == INFINITY ? x : result;
  result = x == 0.0f ? -INFINITY : result;
  return x >= 0.0f ? result : NAN;
}

inline float vtanh(float x) {
  using namespace vec_math_detail;
  const float magnitude = absolute(x);
  const float twice = magnitude > 9.1f ? 18.2f : 2.0f * magnitude;
  const Reduced<float> reduced = reduce_by_ln2(twice);
  const float scale = power_of_two(reduced.n);
  const float t = scale * expm1_reduced(reduced.r) + (scale - 1.0f);  // exp(2|x|) - 1
  return with_sign(t / (t + 2.0f), x);
}

inline float vsigmoid(float x) {
  using namespace vec_math_detail;
  float y = -x;
  y = y < -87.0f ? -87.0f : y;
  const float limited = y > 88.0f ? 88.0f : y;
  const float result = 1.0f / (1.0f + exp_unchecked(limited));
  return y > 88.0f ? 0.0f : result;
}

inline float verf(float x) {
  using namespace vec_math_detail;
  const float t = absolute(x);
  const float square = t * t;
  float p = -5.994498497e-04f;
  p = p * square + 4.994037561e-03f;
  p = p * square + -2.676734887e-02f;
  p = p * square + 1.128184348e-01f;
  p = p * square + -3.761249781e-01f;
  p = p * square + 1.283791512e-01f;
  const float near_zero = t * p + t;
  // Further out 1 - exp(q(t)), q a fit of log(erfc(t)).
  const float u = t > 3.95f ? 3.95f : t;
  float q = 1.957268832e-04f;
  q = q * u + -3.041131189e-03f;
  q = q * u + 2.221852355e-02f;
  q = q * u + -1.039140373e-01f;
  q = q * u + -6.372023821e-01f;
  q = q * u + -1.127663612e+00f;
  q = q * u + -1.985930867e-04f;
  const float far = 1.0f - exp_unchecked(q);
  return with_sign(t < 0.9219f ? near_zero : far, x);
}

inline double vexp(double x) { return std::exp(x); }
inline double vexp_normal(double x) { return std::exp(x); }
inline double vexp2_or_zero(double x) { return std::exp2(x); }
inline double vexpm1(double x) { return std::expm1(x); }
inline double vlog(double x) { return std::log(x); }
inline double vtanh(double x) { return std::tanh(x); }
inline double vsigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline double verf(double x) { return std::erf(x); }

}  // namespace ergon::kernels::cpu
