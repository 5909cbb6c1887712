#include "models/language/training_task.h"

#include <cmath>

#include "models/data/sequence_source.h"

namespace ergon::models {
namespace {

std::shared_ptr<const data::BatchSource> source_of(const data::TokenStream& tokens,
                                                   const LanguageTaskOptions& options, std::uint64_t seed) {
  return std::make_shared<data::SequenceSource>(
      tokens, data::SequenceOptions{.batch_size = options.batch, .seqlen = options.seqlen, .seed = seed});
}

}  // namespace

LanguageTask::LanguageTask(CausalLM& model, const data::TextDataset& text, const LanguageTaskOptions& options)
    : model_(model),
      options_(options),
      training_(source_of(text.train, options, options.seed), /*prefetch=*/2, model.device()),
      validation_(source_of(text.validation, options, options.seed + 1), /*prefetch=*/0, model.device()) {
  text.check_vocabulary(model.vocab_size());
  ERGON_CHECK(options.eval_batches > 0, "[trainer] eval_batches is {}: expected 1 or more",
              options.eval_batches);
  ERGON_CHECK(options.seqlen <= model.context_length(),
              "[trainer] sequences of {} tokens are longer than the model's context of {}", options.seqlen,
              model.context_length());
}

Tensor LanguageTask::next_loss() {
  const data::Batch batch = training_.next();
  return model_.loss(batch.inputs, batch.targets);
}

std::vector<std::pair<std::string, double>> LanguageTask::evaluate() {
  validation_.seek(0);
  double loss = 0;
  for (std::int64_t i = 0; i < options_.eval_batches; ++i) {
    const data::Batch batch = validation_.next();
    loss +=
        model_.loss(batch.inputs, batch.targets).item<double>() / static_cast<double>(options_.eval_batches);
  }
  return {{"val_loss", loss}, {"perplexity", std::exp(loss)}};
}

}  // namespace ergon::models
