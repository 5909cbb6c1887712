#include "models/language/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/autograd.h"

namespace ergon::models {
namespace {

void check(const CausalLM& model, const std::vector<std::int64_t>& prompt, const SamplingOptions& options) {
  ERGON_CHECK(!prompt.empty(), "[generate] the prompt has no tokens: expected at least one");
  for (std::int64_t token : prompt) {
    ERGON_CHECK(token >= 0 && token < model.vocab_size(),
                "[generate] token {} is outside the vocabulary of {}", token, model.vocab_size());
  }
  ERGON_CHECK(options.temperature >= 0, "[generate] temperature {}: expected 0 or more", options.temperature);
  ERGON_CHECK(options.top_k >= 0, "[generate] top_k {}: expected 0 or more", options.top_k);
  ERGON_CHECK(options.top_p > 0 && options.top_p <= 1, "[generate] top_p {}: expected a number in (0, 1]",
              options.top_p);
}

std::int64_t sample(const std::vector<float>& logits, const SamplingOptions& options, Generator& generator) {
  if (options.temperature == 0) return std::max_element(logits.begin(), logits.end()) - logits.begin();
  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](std::int64_t token) { return logits[static_cast<std::size_t>(token)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return logit(a) > logit(b); });
  if (options.top_k > 0 && options.top_k < static_cast<std::int64_t>(order.size())) {
    order.resize(static_cast<std::size_t>(options.top_k));
  }
  std::vector<double> weights;  // unnormalised probabilities, falling
  double total = 0;
  for (std::int64_t token : order) {
    weights.push_back(std::exp((logit(token) - logit(order[0])) / options.temperature));
    total += weights.back();
  }
  double kept = 0;
  std::size_t count = 0;
  while (count < weights.size() && (count == 0 || kept < options.top_p * total)) kept += weights[count++];
  double point = uniform_from_bits(generator.next()) * kept;
  for (std::size_t i = 0; i < count; ++i) {
    point -= weights[i];
    if (point < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace

std::vector<std::int64_t> generate(CausalLM& model, const std::vector<std::int64_t>& prompt,
                                   const SamplingOptions& options,
                                   const std::function<bool(std::int64_t)>& on_token) {
  check(model, prompt, options);
  NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  Generator generator(options.seed);
  std::vector<std::int64_t> text = prompt;
  KvCache cache(model.context_length());
  for (std::int64_t i = 0; i < options.max_new_tokens; ++i) {
    const bool fits = std::ssize(text) <= model.context_length();
    const std::int64_t count = !fits               ? model.context_length()
                               : options.use_cache ? std::ssize(text) - cache.length()
                                                   : std::ssize(text);
    const Tensor tokens = from_vector(std::vector<std::int64_t>(text.end() - count, text.end()), {1, count},
                                      {DType::i64, model.device()});
    const std::vector<float> logits =
        model.next_token_logits(tokens, fits && options.use_cache ? &cache : nullptr).to_vector<float>();
    text.push_back(sample(logits, options, generator));
    if (on_token && !on_token(text.back())) break;
  }
  model.train(was_training);
  return {text.begin() + static_cast<std::ptrdiff_t>(prompt.size()), text.end()};
}

}  // namespace ergon::models
