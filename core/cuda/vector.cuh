#pragma once

// Several elements moved by one instruction of up to 16 bytes.

#include <cstdint>
#include <cstring>

#include "core/cuda/types.cuh"

namespace ergon::device {

// N elements, N * sizeof(T) a power of two, aligned to all of them (to 16 bytes where there are more).
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vector {
  T values[N];

  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kVectorWidth = 16 / sizeof(T);

namespace vector_detail {
template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = std::uint8_t;
};
template <>
struct Word<2> {
  using type = std::uint16_t;
};
template <>
struct Word<4> {
  using type = std::uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
}  // namespace vector_detail

// The vector that starts at `from`, which must be aligned as the vector is.
template <int N, class T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
  Vector<T, N> vector;
  constexpr int kWord = sizeof(vector) < 16 ? sizeof(vector) : 16;
  using Word = typename vector_detail::Word<kWord>::type;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(vector)) / kWord; ++i) {
    const Word word = reinterpret_cast<const Word*>(from)[i];
    memcpy(reinterpret_cast<char*>(&vector) + i * kWord, &word, kWord);
  }
  return vector;
}

namespace vector_detail {
// One instruction, whatever the compiler knows: it splits the store of a struct into its members, and where
// the vector was put together element by element it often does not find the way back.
__device__ __forceinline__ void store_word(void* to, const uint4& word) {
  asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z),
               "r"(word.w)
               : "memory");
}
__device__ __forceinline__ void store_word(void* to, const uint2& word) {
  asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word.x), "r"(word.y) : "memory");
}
template <class Word>
__device__ __forceinline__ void store_word(void* to, const Word& word) {
  *static_cast<Word*>(to) = word;
}
}  // namespace vector_detail

template <int N, class T>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& vector) {
  constexpr int kWord = sizeof(vector) < 16 ? sizeof(vector) : 16;
  using Word = typename vector_detail::Word<kWord>::type;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(vector)) / kWord; ++i) {
    Word word;
    memcpy(&word, reinterpret_cast<const char*>(&vector) + i * kWord, kWord);
    vector_detail::store_word(reinterpret_cast<char*>(to) + i * kWord, word);
  }
}

template <class To, class From, int N>
__device__ __forceinline__ Vector<To, N> convert_vector(const Vector<From, N>& from) {
  Vector<To, N> to;
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = convert<To>(from[i]);
  return to;
}

// On the host: is `pointer` aligned for vectors of N elements of `element_size` bytes, up to 16 bytes?
inline bool aligned_to(const void* pointer, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0;
}

}  // namespace ergon::device
