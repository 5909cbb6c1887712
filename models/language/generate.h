#pragma once

// Text generation.

#include <functional>

#include "models/language/causal_lm.h"

namespace ergon::models {

struct SamplingOptions {
  std::int64_t max_new_tokens = 200;
  double temperature = 1.0;  // 0: always the most likely token
  std::int64_t top_k = 0;    // sample among the k most likely tokens; 0: all
  double top_p =
      1.0;  // sample among the most likely tokens that make up this probability (Holtzman et al. 2019)
  std::uint64_t seed = 0;
  bool use_cache =
      true;  // of keys and values: a new token costs the work of one; off: that of the whole text
};

// A tokenizer's output as a prompt.
inline std::vector<std::int64_t> as_prompt(const std::vector<std::int32_t>& tokens) {
  return {tokens.begin(), tokens.end()};
}

// Continues `prompt` (at least one token) and returns the new tokens; on_token is called with each as it
// comes, and returning false ends the generation. Once the text is longer than the model's context, the
// oldest tokens are left out, and the rest, whose positions change, is read again for each token. Throws
// Error for an empty prompt, a token outside the vocabulary, or options out of range.
std::vector<std::int64_t> generate(CausalLM& model, const std::vector<std::int64_t>& prompt,
                                   const SamplingOptions& options,
                                   const std::function<bool(std::int64_t)>& on_token = {});

}  // namespace ergon::models
