#pragma once

// core/random.h's philox4x32 for runs of consecutive counters, sixteen at a time.

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace ergon::kernels::cpu {

namespace philox_detail {

// A 32-bit word in the lower half of each lane; the upper halves are garbage.
typedef std::uint64_t Words __attribute__((vector_size(64)));

// product = the full 64-bit products of the lower halves of a with b. (No vector goes by value: without
// AVX-512 that has no stable ABI.)
inline void multiply(const Words& a, std::uint32_t b, Words& product) {
#ifdef __AVX512F__
  // maskz: the plain intrinsic sets off a false warning of GCC 12.
  product = reinterpret_cast<Words>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#else
  product = (a & 0xffffffffu) * b;
#endif
}

struct Block {
  Words c0, c1, c2, c3;

  Block(std::uint64_t counter, std::uint64_t stream)
      : c0(Words{0, 1, 2, 3, 4, 5, 6, 7} + counter), c1(c0 >> 32), c2(Words{} + stream), c3(c2 >> 32) {}
  void round(std::uint32_t k0, std::uint32_t k1) {
    Words product0, product1;
    multiply(c0, 0xD2511F53, product0);
    multiply(c2, 0xCD9E8D57, product1);
    c0 = (product1 >> 32) ^ c1 ^ k0;
    c2 = (product0 >> 32) ^ c3 ^ k1;
    c1 = product1;
    c3 = product0;
  }
  void store(std::uint32_t* words) const {
    const Words first = (c0 & 0xffffffffu) | (c1 << 32), second = (c2 & 0xffffffffu) | (c3 << 32);
    const Words low = __builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11);
    const Words high = __builtin_shufflevector(first, second, 4, 12, 5, 13, 6, 14, 7, 15);
    std::memcpy(words, &low, sizeof low);
    std::memcpy(words + 16, &high, sizeof high);
  }
};

}  // namespace philox_detail

// words[4 * i + w] = word w of philox4x32(seed, counter + i, stream), for i < 16. Little-endian machines.
inline void philox_words(std::uint64_t seed, std::uint64_t counter, std::uint32_t* words,
                         std::uint64_t stream = 0) {
  philox_detail::Block a(counter, stream),
      b(counter + 8, stream);  // two chains hide the latency of the products
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    a.round(k0, k1);
    b.round(k0, k1);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  a.store(words);
  b.store(words + 32);
}

}  // namespace ergon::kernels::cpu
