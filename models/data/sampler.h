#pragma once

// Which examples make up batch k: a pure function of the options and k.

#include <cstdint>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "core/random.h"

namespace ergon::data {

enum class Sampling {
  random,      // every example drawn on its own, with replacement
  shuffled,    // every example once an epoch, in an order of the epoch's own; epochs follow without a seam
  sequential,  // every example once, in order: for evaluation
};
std::string_view name_of(Sampling sampling);

struct SamplerOptions {
  Sampling sampling = Sampling::random;
  std::int64_t batch_size = 1;  // of this rank
  std::uint64_t seed = 0;
  // With world_size processes, batch k of rank r is the r-th part of what one process would get as batch k
  // at world_size times the batch size.
  int rank = 0;
  int world_size = 1;
};

// A permutation of [0, size) that needs no memory: a Feistel network whose rounds are Philox, walked until it
// lands inside the range (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
class Permutation {
 public:
  Permutation(std::int64_t size, std::uint64_t seed);
  std::int64_t operator()(std::int64_t i) const;

 private:
  std::uint64_t size_;
  std::uint64_t seed_;
  int half_bits_;
};

class Sampler {
 public:
  // Throws Error, naming the option, for options that make no sense. examples >= 1.
  Sampler(std::int64_t examples, const SamplerOptions& options);

  // Sequential: how many batches this rank has. Otherwise there is no end to them: INT64_MAX.
  std::int64_t num_batches() const;
  // Elements of batch k: batch_size, or what is left for the last sequential one. Throws Error for k out of
  // range.
  std::int64_t batch_size(std::int64_t k) const;
  // The example, in [0, examples), that is element i of batch k.
  std::int64_t example(std::int64_t k, std::int64_t i) const;
  // Random numbers for element i of batch k: for augmentation.
  Generator generator(std::int64_t k, std::int64_t i) const;
  // Passes over the data that k batches, of all ranks, make.
  double epochs(std::int64_t k) const;

  // What decides the batches; equal for all ranks.
  nlohmann::json settings() const;

 private:
  // The place of element i of batch k in the sequence that all ranks' batches make.
  std::int64_t position(std::int64_t k, std::int64_t i) const {
    return (k * options_.world_size + options_.rank) * options_.batch_size + i;
  }

  std::int64_t examples_;
  SamplerOptions options_;
};

}  // namespace ergon::data
