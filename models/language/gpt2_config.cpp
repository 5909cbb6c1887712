// GPT-2's sizes and config.json.

#include <array>

#include "models/language/config_json.h"
#include "models/language/gpt2.h"

namespace ergon::models {

GPT2Config GPT2Config::named(std::string_view name) {
  struct Named {
    std::string_view name, parameters;
    std::int64_t hidden_size, num_layers, num_heads;
  };
  constexpr std::array<Named, 4> kSizes{{{"gpt2", "124M", 768, 12, 12},
                                         {"gpt2-medium", "355M", 1024, 24, 16},
                                         {"gpt2-large", "774M", 1280, 36, 20},
                                         {"gpt2-xl", "1558M", 1600, 48, 25}}};
  for (const Named& size : kSizes) {
    if (name != size.name && name != size.parameters) continue;
    return {.hidden_size = size.hidden_size, .num_layers = size.num_layers, .num_heads = size.num_heads};
  }
  ERGON_FAIL(
      "unknown GPT-2 size '{}': expected gpt2 (124M), gpt2-medium (355M), gpt2-large (774M) or gpt2-xl "
      "(1558M)",
      name);
}

void GPT2Config::validate() const {
  check_positive("gpt2", {{"vocab_size", vocab_size},
                          {"n_positions", context_length},
                          {"n_embd", hidden_size},
                          {"n_layer", num_layers},
                          {"n_head", num_heads}});
  ERGON_CHECK(hidden_size % num_heads == 0, "[gpt2] n_embd {} must be a multiple of n_head {}", hidden_size,
              num_heads);
  ERGON_CHECK(dropout >= 0 && dropout < 1, "[gpt2] dropout {}: expected a number in [0, 1)", dropout);
}

GPT2Config GPT2Config::from_json(const nlohmann::json& json) {
  const ConfigReader read("gpt2", json);
  GPT2Config config;
  config.vocab_size = read.integer("vocab_size");
  config.context_length = read.integer("n_positions");
  config.hidden_size = read.integer("n_embd");
  config.num_layers = read.integer("n_layer");
  config.num_heads = read.integer("n_head");
  config.dropout = read.number("resid_pdrop", 0);
  config.layer_norm_eps = read.number("layer_norm_epsilon", 1e-5);
  read.expect("activation_function", "gelu_new");
  config.validate();
  return config;
}

nlohmann::json GPT2Config::to_json() const {
  return {{"model_type", "gpt2"},
          {"architectures", {"GPT2LMHeadModel"}},
          {"vocab_size", vocab_size},
          {"n_positions", context_length},
          {"n_ctx", context_length},
          {"n_embd", hidden_size},
          {"n_layer", num_layers},
          {"n_head", num_heads},
          {"activation_function", "gelu_new"},
          {"resid_pdrop", dropout},
          {"embd_pdrop", dropout},
          {"attn_pdrop", 0.0},
          {"layer_norm_epsilon", layer_norm_eps},
          {"initializer_range", 0.02},
          {"tie_word_embeddings", true}};
}

}  // namespace ergon::models
