#pragma once

// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). Element i of a stream is a pure function of (seed, offset, i), so every device and every thread
// count gives the same numbers, and a resumed run goes on with the same ones.

#include <array>
#include <cstdint>

namespace ergon {

// A reserved piece of a generator's stream: element i uses word i % 4 of block offset + i / 4.
struct PhiloxState {
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;  // in blocks of four 32-bit words
};

// The ten rounds for one 128-bit counter {counter low, counter high, stream low, stream high} and key {seed
// low, seed high}. Generators use stream 0.
constexpr std::array<std::uint32_t, 4> philox4x32(std::uint64_t seed, std::uint64_t counter,
                                                  std::uint64_t stream = 0) {
  std::uint32_t c0 = static_cast<std::uint32_t>(counter), c1 = static_cast<std::uint32_t>(counter >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(stream), c3 = static_cast<std::uint32_t>(stream >> 32);
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * c2;
    const std::uint32_t next0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const std::uint32_t next2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(product1);
    c3 = static_cast<std::uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {c0, c1, c2, c3};
}

// A 32-bit word as a float in [0, 1), from its upper 24 bits.
constexpr float uniform_from_bits(std::uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

// A seed and a position. Copyable: a copy gives the same numbers again.
class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0) : state_{seed, 0} {}

  // Takes `count` 32-bit words off the stream.
  PhiloxState reserve(std::int64_t count) {
    const PhiloxState taken = state_;
    state_.offset += static_cast<std::uint64_t>(count + 3) / 4;
    return taken;
  }
  // One word, for use on the host.
  std::uint32_t next() { return philox4x32(state_.seed, reserve(1).offset)[0]; }
  // A number in [0, bound), bound >= 1, without modulo bias (Lemire's multiply-shift with rejection).
  std::uint64_t below(std::uint64_t bound);

  PhiloxState state() const { return state_; }
  void set_state(PhiloxState state) { state_ = state; }

 private:
  PhiloxState state_;
};

// The generator that factories, initialisers and dropout use when none is given. One for the process; use it
// from one thread.
Generator& default_generator();

// Restarts the default generator.
void manual_seed(std::uint64_t seed);

}  // namespace ergon
