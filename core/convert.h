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

namespace convert_detail {

// As many elements from the start of a run as there are vector instructions for; how many that were.
template <class To, class From>
inline std::int64_t convert_vectors(const From*, To*, std::int64_t) {
  return 0;
}

#if defined(__AVX512F__) && defined(__AVX512BW__)

inline __m512 load_vector(const float* x) { return _mm512_loadu_ps(x); }
inline __m256i load_vector(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }

typedef std::uint32_t Words __attribute__((vector_size(64)));

inline __m512 bf16_to_floats(__m256i halves) {
  return std::bit_cast<__m512>(std::bit_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, halves)) << 16);
}

// float_to_bf16 of every lane. The instruction for it takes subnormals for zeros and keeps what NaNs carry.
inline __m256i floats_to_bf16(__m512 values) {
  typedef std::uint16_t Halves __attribute__((vector_size(64)));
  const Words bits = std::bit_cast<Words>(values);
  const Words rounded = bits + ((bits >> 16) & 1) + 0x7fff;
  const Words nan = (bits & 0x80000000) | 0x7fc00000;
  const Halves halves = std::bit_cast<Halves>(values != values ? nan : rounded);
  return std::bit_cast<__m256i>(
      __builtin_shufflevector(halves, halves, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
}

template <>
inline std::int64_t convert_vectors(const bf16* x, float* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm512_storeu_ps(y + i, bf16_to_floats(load_vector(static_cast<const void*>(x + i))));
  }
  return i;
}

template <>
inline std::int64_t convert_vectors(const f16* x, float* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm512_storeu_ps(y + i, _mm512_maskz_cvtph_ps(0xffff, load_vector(static_cast<const void*>(x + i))));
  }
  return i;
}

template <>
inline std::int64_t convert_vectors(const float* x, f16* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i half = _mm512_maskz_cvtps_ph(0xffff, load_vector(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), half);
  }
  return i;
}

template <>
inline std::int64_t convert_vectors(const float* x, bf16* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 values = load_vector(x + i);
    auto* target = reinterpret_cast<__m256i*>(y + i);
#ifdef __AVX512BF16__
    constexpr int kSubnormalOrNan = 0x20 | 0x01 | 0x80;
    if (!_mm512_fpclass_ps_mask(values, kSubnormalOrNan)) [[likely]] {
      _mm256_storeu_si256(target, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
      continue;
    }
#endif
    _mm256_storeu_si256(target, floats_to_bf16(values));
  }
  return i;
}

#elif defined(__F16C__)

template <>
inline std::int64_t convert_vectors(const f16* x, float* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  }
  return i;
}

template <>
inline std::int64_t convert_vectors(const float* x, f16* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), half);
  }
  return i;
}

#endif

}  // namespace convert_detail

// y[i] = x[i] for i < n, contiguous; x and y do not overlap.
template <class To, class From>
inline void convert_run(const From* __restrict x, To* __restrict y, std::int64_t n) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(y, x, static_cast<std::size_t>(n) * sizeof(To));
    return;
  }
  const std::int64_t done = convert_detail::convert_vectors(x, y, n);
  x += done, y += done, n -= done;
  if constexpr (std::is_same_v<From, bf16> && std::is_floating_point_v<To>) {
    const auto* bits = reinterpret_cast<const std::uint16_t*>(x);
    for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<To>(bf16_to_float(bits[i]));
  } else if constexpr (std::is_same_v<To, bf16> && std::is_floating_point_v<From>) {
    auto* bits = reinterpret_cast<std::uint16_t*>(y);
    for (std::int64_t i = 0; i < n; ++i) bits[i] = float_to_bf16(static_cast<float>(x[i]));
  } else {
    for (std::int64_t i = 0; i < n; ++i) y[i] = convert<To>(x[i]);
  }
}

}  // namespace ergon
