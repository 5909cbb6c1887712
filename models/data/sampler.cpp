#include "models/data/sampler.h"

#include <algorithm>
#include <bit>
#include <limits>

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace ergon::data {
namespace {

// Independent streams of one seed.
enum Stream : std::uint64_t { kDraw = 1, kShuffle = 2, kAugment = 3 };

std::uint64_t derive_seed(std::uint64_t seed, std::uint64_t value) {
  const auto words = philox4x32(seed, value);
  return (std::uint64_t{words[1]} << 32) | words[0];
}
std::uint64_t stream_seed(std::uint64_t seed, Stream stream, std::int64_t index) {
  return derive_seed(derive_seed(seed, stream), static_cast<std::uint64_t>(index));
}

}  // namespace

std::string_view name_of(Sampling sampling) {
  switch (sampling) {
    case Sampling::random:
      return "random";
    case Sampling::shuffled:
      return "shuffled";
    case Sampling::sequential:
      return "sequential";
  }
  ERGON_INTERNAL_ASSERT(false);
}

Permutation::Permutation(std::int64_t size, std::uint64_t seed)
    : size_(static_cast<std::uint64_t>(size)), seed_(seed) {
  ERGON_INTERNAL_ASSERT(size > 0);
  half_bits_ = std::max((static_cast<int>(std::bit_width(size_ - 1)) + 1) / 2, 1);
}

std::int64_t Permutation::operator()(std::int64_t i) const {
  constexpr std::uint64_t kRounds = 6;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto value = static_cast<std::uint64_t>(i);
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t mixed = left ^ (philox4x32(seed_, (round << 32) | right)[0] & mask);
      left = right;
      right = mixed;
    }
    value = (left << half_bits_) | right;
  } while (value >= size_);  // the domain is less than four times as large
  return static_cast<std::int64_t>(value);
}

Sampler::Sampler(std::int64_t examples, const SamplerOptions& options)
    : examples_(examples), options_(options) {
  ERGON_CHECK(examples > 0, "[sampler] no examples");
  ERGON_CHECK(options.batch_size > 0, "[sampler] batch_size {} must be positive", options.batch_size);
  ERGON_CHECK(options.world_size > 0, "[sampler] world_size {} must be positive", options.world_size);
  ERGON_CHECK(0 <= options.rank && options.rank < options.world_size, "[sampler] rank {}: expected [0, {})",
              options.rank, options.world_size);
}

std::int64_t Sampler::num_batches() const {
  if (options_.sampling != Sampling::sequential) return std::numeric_limits<std::int64_t>::max();
  const std::int64_t batches = (examples_ + options_.batch_size - 1) / options_.batch_size;  // of all ranks
  return (batches - options_.rank + options_.world_size - 1) / options_.world_size;
}

std::int64_t Sampler::batch_size(std::int64_t k) const {
  ERGON_CHECK(0 <= k && k < num_batches(), "[sampler] batch {}: there are {}", k, num_batches());
  if (options_.sampling != Sampling::sequential) return options_.batch_size;
  return std::min(options_.batch_size, examples_ - position(k, 0));
}

std::int64_t Sampler::example(std::int64_t k, std::int64_t i) const {
  const std::int64_t at = position(k, i);
  switch (options_.sampling) {
    case Sampling::random: {
      Generator generator(stream_seed(options_.seed, kDraw, at));
      return static_cast<std::int64_t>(generator.below(static_cast<std::uint64_t>(examples_)));
    }
    case Sampling::shuffled: {
      const std::uint64_t seed = stream_seed(options_.seed, kShuffle, at / examples_);
      return Permutation(examples_, seed)(at % examples_);
    }
    case Sampling::sequential:
      return at;
  }
  ERGON_INTERNAL_ASSERT(false);
}

Generator Sampler::generator(std::int64_t k, std::int64_t i) const {
  return Generator(stream_seed(options_.seed, kAugment, position(k, i)));
}

double Sampler::epochs(std::int64_t k) const {
  return static_cast<double>(k) * static_cast<double>(options_.batch_size) * options_.world_size
         / static_cast<double>(examples_);
}

nlohmann::json Sampler::settings() const {
  return {{"sampling", name_of(options_.sampling)},
          {"batch_size", options_.batch_size},
          {"seed", options_.seed},
          {"world_size", options_.world_size},
          {"examples", examples_}};
}

}  // namespace ergon::data
