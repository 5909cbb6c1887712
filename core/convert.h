#pragma once

// Conversion of runs of elements between storage types and the types that arithmetic is done in. Round to
// nearest even, as Eigen's scalar conversions; the loops vectorise, which Eigen's do not.

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/half.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace ergon {

inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const std::uint32_t nan = ((bits >> 16) & 0x8000) | 0x7fc0;
  return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

// One element, by way of float where that is how halves convert.
template <class To, class From>
inline To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (is_half(dtype_of<From>()) && !std::is_same_v<To, float>) {
    return convert<To>(static_cast<float>(x));
  } else if constexpr (std::is_same_v<To, bool>) {
    return x != From(0);
  } else if constexpr (is_half(dtype_of<To>())) {
    return static_cast<To>(static_cast<float>(x));
  } else {
    return static_cast<To>(x);
  }
}

// y[i] = x[i] for i < n, contiguous; x and y do not overlap.
template <class To, class From>
inline void convert_run(const From* __restrict x, To* __restrict y, std::int64_t n) {
  std::int64_t i = 0;
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(y, x, static_cast<std::size_t>(n) * sizeof(To));
    i = n;
  } else if constexpr (std::is_same_v<From, bf16> && std::is_floating_point_v<To>) {
    const auto* bits = reinterpret_cast<const std::uint16_t*>(x);
    for (; i < n; ++i) y[i] = static_cast<To>(bf16_to_float(bits[i]));
  } else if constexpr (std::is_same_v<To, bf16> && std::is_floating_point_v<From>) {
    auto* bits = reinterpret_cast<std::uint16_t*>(y);
    for (; i < n; ++i) bits[i] = float_to_bf16(static_cast<float>(x[i]));
#ifdef __F16C__
  } else if constexpr (std::is_same_v<From, f16> && std::is_same_v<To, float>) {
    for (; i + 8 <= n; i += 8) {
      _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
    }
  } else if constexpr (std::is_same_v<To, f16> && std::is_same_v<From, float>) {
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), half);
    }
#endif
  }
  for (; i < n; ++i) y[i] = convert<To>(x[i]);
}

}  // namespace ergon
