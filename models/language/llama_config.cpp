// Llama's sizes and config.json.

#include "models/language/config_json.h"
#include "models/language/llama.h"

namespace ergon::models {

void LlamaConfig::validate() const {
  check_positive("llama", {{"vocab_size", vocab_size},
                           {"max_position_embeddings", context_length},
                           {"hidden_size", hidden_size},
                           {"intermediate_size", intermediate_size},
                           {"num_hidden_layers", num_layers},
                           {"num_attention_heads", num_heads},
                           {"num_key_value_heads", num_heads_kv},
                           {"head_dim", head_dim}});
  ERGON_CHECK(num_heads % num_heads_kv == 0,
              "[llama] num_attention_heads {} must be a multiple of num_key_value_heads {}", num_heads,
              num_heads_kv);
  ERGON_CHECK(head_dim % 2 == 0, "[llama] head_dim {} must be even for the rotary embedding", head_dim);
}

LlamaConfig LlamaConfig::from_json(const nlohmann::json& json) {
  const ConfigReader read("llama", json);
  LlamaConfig config;
  config.vocab_size = read.integer("vocab_size");
  config.context_length = read.integer("max_position_embeddings", 2048);
  config.hidden_size = read.integer("hidden_size");
  config.intermediate_size = read.integer("intermediate_size");
  config.num_layers = read.integer("num_hidden_layers");
  config.num_heads = read.integer("num_attention_heads");
  config.num_heads_kv = read.integer("num_key_value_heads", config.num_heads);
  ERGON_CHECK(config.num_heads > 0, "[llama] num_attention_heads {}: expected a positive number",
              config.num_heads);
  config.head_dim = read.integer("head_dim", config.hidden_size / config.num_heads);
  config.rope_theta = read.number("rope_theta", 10000);
  config.rms_norm_eps = read.number("rms_norm_eps", 1e-6);
  config.tie_word_embeddings = read.boolean("tie_word_embeddings", false);
  config.initializer_range = read.number("initializer_range", 0.02);
  read.expect("hidden_act", "silu");
  read.expect_absent("rope_scaling");
  read.expect_false("attention_bias");
  read.expect_false("mlp_bias");
  config.validate();
  return config;
}

nlohmann::json LlamaConfig::to_json() const {
  return {{"model_type", "llama"},
          {"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", vocab_size},
          {"max_position_embeddings", context_length},
          {"hidden_size", hidden_size},
          {"intermediate_size", intermediate_size},
          {"num_hidden_layers", num_layers},
          {"num_attention_heads", num_heads},
          {"num_key_value_heads", num_heads_kv},
          {"head_dim", head_dim},
          {"rope_theta", rope_theta},
          {"rms_norm_eps", rms_norm_eps},
          {"hidden_act", "silu"},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"initializer_range", initializer_range},
          {"tie_word_embeddings", tie_word_embeddings}};
}

}  // namespace ergon::models
