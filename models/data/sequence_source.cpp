#include "models/data/sequence_source.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/error.h"

namespace ergon::data {
namespace {

std::int64_t count_examples(const TokenStream& tokens, const SequenceOptions& options) {
  const std::int64_t seqlen = options.seqlen;
  ERGON_CHECK(seqlen > 0, "[text] seqlen {} must be positive", seqlen);
  ERGON_CHECK(tokens.size() > seqlen, "[text] {} has {} tokens: a context of {} needs at least {}",
              tokens.name(), tokens.size(), seqlen, seqlen + 1);
  return options.sampling == Sampling::random ? tokens.size() - seqlen : (tokens.size() - 1) / seqlen;
}

}  // namespace

SequenceSource::SequenceSource(TokenStream tokens, const SequenceOptions& options)
    : tokens_(std::move(tokens)),
      options_(options),
      sampler_(count_examples(tokens_, options), {.sampling = options.sampling,
                                                  .batch_size = options.batch_size,
                                                  .seed = options.seed,
                                                  .rank = options.rank,
                                                  .world_size = options.world_size}) {}

Batch SequenceSource::batch(std::int64_t k) const {
  const std::int64_t batch_size = sampler_.batch_size(k), seqlen = options_.seqlen;
  Batch batch{empty({batch_size, seqlen}, {.dtype = DType::i32}),
              empty({batch_size, seqlen}, {.dtype = DType::i32})};
  std::int32_t* inputs = batch.inputs.data<std::int32_t>();
  std::int32_t* targets = batch.targets.data<std::int32_t>();
  const std::int64_t stride = options_.sampling == Sampling::random ? 1 : seqlen;
  std::vector<std::int32_t> window(static_cast<std::size_t>(seqlen + 1));
  for (std::int64_t i = 0; i < batch_size; ++i) {
    tokens_.read(sampler_.example(k, i) * stride, seqlen + 1, window.data());
    std::copy_n(window.data(), seqlen, inputs + i * seqlen);
    std::copy_n(window.data() + 1, seqlen, targets + i * seqlen);
  }
  return batch;
}

double SequenceSource::epochs(std::int64_t k) const {
  // Random crops overlap: count tokens, not crops.
  if (options_.sampling != Sampling::random) return sampler_.epochs(k);
  return sampler_.epochs(k) * static_cast<double>(tokens_.size() - options_.seqlen)
         * static_cast<double>(options_.seqlen) / static_cast<double>(tokens_.size());
}

nlohmann::json SequenceSource::settings() const {
  nlohmann::json settings = sampler_.settings();
  settings["seqlen"] = options_.seqlen;
  settings["tokens"] = tokens_.size();
  settings["vocab_size"] = tokens_.vocab_size();
  return settings;
}

}  // namespace ergon::data
