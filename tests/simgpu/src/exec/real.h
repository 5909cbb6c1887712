#pragma once
// Floating-point arithmetic of PTX on single lanes: types, flushing, saturation, rounding to halves.
#include <bit>
#include <cfenv>
#include <cmath>
#include <limits>

#include "types.h"

namespace simgpu {

struct Half {
  u16 bits;
};
struct Bfloat {
  u16 bits;
};

// Without branches, so that loops over it vectorise: the product is exact, of subnormal numbers too.
inline float widen(Half h) {
  const u32 sign = u32{h.bits & 0x8000u} << 16, magnitude = h.bits & 0x7fffu;
  const u32 finite = std::bit_cast<u32>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00 ? 0x7f800000u | magnitude << 13 : finite));
}
inline float widen(Bfloat b) { return std::bit_cast<float>(u32{b.bits} << 16); }
inline float widen(float f) { return f; }
inline double widen(double d) { return d; }

enum class Rounding : u8 { kNearest, kZero, kDown, kUp, kAway };  // rn, rz, rm, rp, rna

// |x| as a multiple of the last place of a format with `precision` bits and smallest normal exponent
// `min_exponent`, rounded; exact in double for halves.
inline double round_to(double x, int precision, int min_exponent, Rounding rounding) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), min_exponent) - (precision - 1);
  const double scaled = std::scalbn(x, -exponent);
  double whole = std::trunc(scaled);
  const double rest = std::fabs(scaled - whole), sign = std::signbit(x) ? -1.0 : 1.0;
  bool up = false;
  switch (rounding) {
    case Rounding::kNearest:
      up = rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2.0) != 0);
      break;
    case Rounding::kAway:
      up = rest >= 0.5;
      break;
    case Rounding::kZero:
      break;
    case Rounding::kDown:
      up = rest > 0 && sign < 0;
      break;
    case Rounding::kUp:
      up = rest > 0 && sign > 0;
      break;
  }
  if (up) whole += sign;
  return std::copysign(std::scalbn(whole, exponent), x);
}

inline u16 sign_of(double x) { return std::signbit(x) ? 0x8000 : 0; }

template <class T>
T narrow(double x, Rounding rounding = Rounding::kNearest);
template <>
inline Half narrow<Half>(double x, Rounding rounding) {
  if (std::isnan(x)) return {0x7fff};
  const double r = std::isinf(x) ? x : round_to(x, 11, -14, rounding);
  const u16 sign = sign_of(x);
  if (std::fabs(r) > 65504.0) {
    const bool finite = std::isfinite(x)
                        && (rounding == Rounding::kZero || (rounding == Rounding::kDown && !sign)
                            || (rounding == Rounding::kUp && sign));
    return {static_cast<u16>(sign | (finite ? 0x7bff : 0x7c00))};
  }
  const double magnitude = std::fabs(r);
  if (magnitude < 0x1p-14) return {static_cast<u16>(sign | static_cast<u16>(magnitude * 0x1p24))};
  const u64 bits = std::bit_cast<u64>(magnitude);
  return {static_cast<u16>(sign | (((bits >> 52) - 1023 + 15) << 10) | (bits >> 42 & 0x3ff))};
}
template <>
inline Bfloat narrow<Bfloat>(double x, Rounding rounding) {
  if (std::isnan(x)) return {0x7fff};
  const double r = std::isinf(x) ? x : round_to(x, 8, -126, rounding);
  const u16 sign = sign_of(x);
  if (std::fabs(r) > 0x1.fep127) {
    const bool finite = std::isfinite(x)
                        && (rounding == Rounding::kZero || (rounding == Rounding::kDown && !sign)
                            || (rounding == Rounding::kUp && sign));
    return {static_cast<u16>(sign | (finite ? 0x7f7f : 0x7f80))};
  }
  return {static_cast<u16>(std::bit_cast<u32>(static_cast<float>(r)) >> 16)};  // exact: 8 bits of a float
}

// bf16 from float by nearest even, without the detour through double.
inline Bfloat to_bfloat(float x) {
  const u32 bits = std::bit_cast<u32>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline float flush(float x) {
  const u32 bits = std::bit_cast<u32>(x);
  return (bits & 0x7f800000u) == 0 ? std::bit_cast<float>(bits & 0x80000000u) : x;
}
inline double flush(double x) { return x; }
template <class T>
inline T saturate(T x) {
  return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
}  // NaN becomes 0

// a * b + c as double, so that one rounding to a half follows: odd rounding keeps what double cannot.
inline double fma_to_odd(double a, double b, double c) {
  const double product = a * b;  // exact: 22 bits
  const double sum = product + c;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (c - back);
  if (error == 0 || !std::isfinite(sum) || (std::bit_cast<u64>(sum) & 1) != 0) return sum;
  return std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

}  // namespace simgpu
