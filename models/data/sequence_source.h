#pragma once

// Windows of a token sequence, for language models.

#include "models/data/loader.h"
#include "models/data/sampler.h"
#include "models/data/token_stream.h"

namespace ergon::data {

struct SequenceOptions {
  std::int64_t batch_size = 12;  // of this rank
  std::int64_t seqlen = 64;
  // random: crops at any place. shuffled and sequential: windows [i * seqlen, (i + 1) * seqlen); tokens after
  // the last whole one are not used.
  Sampling sampling = Sampling::random;
  std::uint64_t seed = 0;
  int rank = 0;
  int world_size = 1;
};

// inputs (batch, seqlen) i32, targets (batch, seqlen) i32: the token after each of inputs.
class SequenceSource final : public BatchSource {
 public:
  // Throws Error, naming the text, if it has fewer than seqlen + 1 tokens.
  SequenceSource(TokenStream tokens, const SequenceOptions& options);

  Batch batch(std::int64_t k) const override;
  std::int64_t num_batches() const override { return sampler_.num_batches(); }
  double epochs(std::int64_t k) const override;
  nlohmann::json settings() const override;

 private:
  TokenStream tokens_;
  SequenceOptions options_;
  Sampler sampler_;
};

}  // namespace ergon::data
