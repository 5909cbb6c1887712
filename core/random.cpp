#include "core/random.h"

namespace ergon {

std::uint64_t Generator::below(std::uint64_t bound) {
  const std::uint64_t threshold = (0 - bound) % bound;
  while (true) {
    const std::array<std::uint32_t, 4> words = philox4x32(state_.seed, reserve(4).offset);
    const std::uint64_t bits = (std::uint64_t{words[1]} << 32) | words[0];
    const unsigned __int128 product = static_cast<unsigned __int128>(bits) * bound;
    if (static_cast<std::uint64_t>(product) >= threshold) return static_cast<std::uint64_t>(product >> 64);
  }
}

Generator& default_generator() {
  static Generator generator;
  return generator;
}

void manual_seed(std::uint64_t seed) { default_generator() = Generator(seed); }

}  // namespace ergon
