#pragma once

// Fixed-width vectors (the compiler's vector extensions, no intrinsics but for halves and stores past the
// caches), as wide as the widest register of the target, with loads and stores that convert bf16 and f16.

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "core/convert.h"

namespace ergon::kernels::cpu {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;  // SSE2, NEON
#endif

// T is float or double.
template <class T>
struct Simd {
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
inline constexpr int kLanes = Simd<T>::kLanes;

// --- full vectors, any alignment ---

inline Vec<float> load(const float* source) {
  Vec<float> v;
  std::memcpy(&v, source, sizeof v);
  return v;
}
inline Vec<double> load(const double* source) {
  Vec<double> v;
  std::memcpy(&v, source, sizeof v);
  return v;
}
inline void store(float* target, Vec<float> v) { std::memcpy(target, &v, sizeof v); }
inline void store(double* target, Vec<double> v) { std::memcpy(target, &v, sizeof v); }

// Past the caches, where the target has such stores: for what is not read again soon, so that it neither has
// to be fetched first nor drives out what is. `target` is a multiple of kVectorBytes. What was stored is seen
// by others after drain_streams().
inline void stream(float* target, Vec<float> v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(target, std::bit_cast<__m512>(v));
#elif defined(__AVX__)
  _mm256_stream_ps(target, std::bit_cast<__m256>(v));
#elif defined(__SSE2__)
  _mm_stream_ps(target, std::bit_cast<__m128>(v));
#else
  store(target, v);
#endif
}
inline void drain_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

// The bits of each, in a word of its own.
inline Words load_words(const bf16* source) {
#if defined(__AVX512F__)  // GCC 12 makes four instructions of the conversion below; masked as for f16
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return std::bit_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, half));
#else
  Halves half;
  std::memcpy(&half, source, sizeof half);
  return __builtin_convertvector(half, Words);
#endif
}

// bf16 is the upper half of a float.
inline Vec<float> load(const bf16* source) { return std::bit_cast<Vec<float>>(load_words(source) << 16); }

inline Vec<float> load(const f16* source) {
#if defined(__AVX512F__)  // the masked form: GCC 12 warns about an undefined operand inside the plain one
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return std::bit_cast<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, half));
#elif defined(__AVX__) && defined(__F16C__)
  return std::bit_cast<Vec<float>>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
#else
  float values[kLanes<float>];
  convert_run(source, values, kLanes<float>);
  return load(values);
#endif
}

namespace simd_detail {

template <std::size_t... kIndex>
inline Halves upper_halves(Words words, std::index_sequence<kIndex...>) {
  typedef std::uint16_t AllHalves __attribute__((vector_size(kVectorBytes)));
  const AllHalves halves = std::bit_cast<AllHalves>(words);
  constexpr int kUpper = std::endian::native == std::endian::little ? 1 : 0;
  return __builtin_shufflevector(halves, halves, (2 * static_cast<int>(kIndex) + kUpper)...);
}

}  // namespace simd_detail

inline void store(bf16* target, Vec<float> v) {  // float_to_bf16 of every lane
#if defined(__AVX512BF16__) && defined(__AVX512DQ__)
  // The instruction makes zeros of subnormal numbers and keeps the bits of a NaN: those go the long way.
  constexpr int kNanOrSubnormal = 0x80 | 0x20 | 0x01;
  if (_mm512_fpclass_ps_mask(std::bit_cast<__m512>(v), kNanOrSubnormal) == 0) [[likely]] {
    const __m256bh half = _mm512_cvtneps_pbh(std::bit_cast<__m512>(v));
    std::memcpy(static_cast<void*>(target), &half, sizeof half);
    return;
  }
#endif
  const Words bits = std::bit_cast<Words>(v);
  const Words rounded = bits + ((bits >> 16) & 1) + 0x7fff;
  const Words nan = (bits & 0x80000000) | 0x7fc00000;
  const Halves half =
      simd_detail::upper_halves(v != v ? nan : rounded, std::make_index_sequence<kLanes<float>>{});
  std::memcpy(static_cast<void*>(target), &half, sizeof half);
}

inline void store(f16* target, Vec<float> v) {
#if defined(__AVX512F__)
  const __m256i half = _mm512_maskz_cvtps_ph(0xffff, std::bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), half);
#else
  float values[kLanes<float>];
  std::memcpy(values, &v, sizeof values);
  convert_run(values, target, kLanes<float>);
#endif
}

// --- across lanes ---

namespace simd_detail {

// Lanes i and i ^ kStep swap.
template <class T, int kStep, std::size_t... kIndex>
inline Vec<T> swap_lanes(Vec<T> v, std::index_sequence<kIndex...>) {
  return __builtin_shufflevector(v, v, static_cast<int>(kIndex ^ kStep)...);
}

template <class T, int kStep, class Op>
inline Vec<T> fold_lanes(Vec<T> v, Op op) {
  if constexpr (kStep == 0) {
    return v;
  } else {
    using Lanes = std::make_index_sequence<static_cast<std::size_t>(kLanes<T>)>;
    return fold_lanes<T, kStep / 2>(op(v, swap_lanes<T, kStep>(v, Lanes{})), op);
  }
}

}  // namespace simd_detail

// op over all lanes, halves against each other; op(a, b) takes vectors.
template <class T, class Op>
inline T reduce_lanes(Vec<T> v, Op op) {
  return simd_detail::fold_lanes<T, kLanes<T> / 2>(v, op)[0];
}

// f(v...) lane by lane; a function of straight-line code is vectorised.
template <class T, class F, class... V>
inline Vec<T> map_lanes(F f, V... v) {
  T result[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) result[i] = f(v[i]...);
  return load(result);
}

// --- transposition in registers ---

namespace simd_detail {

template <class T, int kStep, int kHigh, std::size_t... kIndex>
inline Vec<T> exchange(Vec<T> a, Vec<T> b, std::index_sequence<kIndex...>) {
  // Lanes whose kStep bit is 0 come from a, the others from b, each shifted so that blocks of kStep lanes
  // swap.
  constexpr int n = kLanes<T>;
  return __builtin_shufflevector(
      a, b,
      (kHigh ? ((kIndex & kStep) ? static_cast<int>(kIndex) + n : static_cast<int>(kIndex) + kStep)
             : ((kIndex & kStep) ? static_cast<int>(kIndex) - kStep + n : static_cast<int>(kIndex)))...);
}

template <class T, int kStep>
inline void transpose_stage(Vec<T>* rows) {
  if constexpr (kStep < kLanes<T>) {
    using Lanes = std::make_index_sequence<static_cast<std::size_t>(kLanes<T>)>;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & kStep) continue;
      const Vec<T> a = rows[i];
      const Vec<T> b = rows[i + kStep];
      rows[i] = exchange<T, kStep, 0>(a, b, Lanes{});
      rows[i + kStep] = exchange<T, kStep, 1>(a, b, Lanes{});
    }
    transpose_stage<T, kStep * 2>(rows);
  }
}

}  // namespace simd_detail

// rows[i][j] <-> rows[j][i] for a square block of kLanes<T> vectors.
template <class T>
inline void transpose(Vec<T>* rows) {
  simd_detail::transpose_stage<T, 1>(rows);
}

}  // namespace ergon::kernels::cpu
