#pragma once

// Llama-style decoder (Touvron et al. 2023, arXiv 2302.13971): RMSNorm, rotary embedding, SwiGLU,
// grouped-query attention; with the parameter names, shapes and config.json of Hugging Face's implementation.

#include "models/language/causal_lm.h"
#include "models/nn/layers.h"

namespace ergon::models {

struct LlamaConfig {
  std::int64_t vocab_size = 32000;
  std::int64_t context_length = 2048;  // max_position_embeddings
  std::int64_t hidden_size = 576;
  std::int64_t intermediate_size = 1536;
  std::int64_t num_layers = 30;
  std::int64_t num_heads = 9;
  std::int64_t num_heads_kv = 3;
  std::int64_t head_dim = 64;
  double rope_theta = 10000;
  double rms_norm_eps = 1e-5;
  bool tie_word_embeddings = false;
  double initializer_range = 0.02;

  static LlamaConfig from_json(const nlohmann::json& json);
  nlohmann::json to_json() const;
  // Throws Error naming the field if the values do not make a model.
  void validate() const;
};

class LlamaAttention : public nn::Module {
 public:
  explicit LlamaAttention(const LlamaConfig& config);
  // (batch, seqlen, hidden_size), the tokens from `position` on.
  Tensor forward(const Tensor& input, std::int64_t position = 0, KvCache::Layer* cache = nullptr);

  nn::Linear q_proj, k_proj, v_proj, o_proj;

 private:
  std::int64_t head_dim_;
  double rope_theta_;
};

class LlamaMlp : public nn::Layer {
 public:
  explicit LlamaMlp(const LlamaConfig& config);
  Tensor forward(const Tensor& x) override;

  nn::Linear gate_proj, up_proj, down_proj;
};

class LlamaBlock : public nn::Module {
 public:
  explicit LlamaBlock(const LlamaConfig& config);
  Tensor forward(const Tensor& input, std::int64_t position = 0, KvCache::Layer* cache = nullptr);

  nn::RMSNorm input_layernorm;
  LlamaAttention self_attn;
  nn::RMSNorm post_attention_layernorm;
  LlamaMlp mlp;
};

class Llama : public CausalLM {
 public:
  explicit Llama(const LlamaConfig& config);

  Tensor hidden_states(const Tensor& tokens, KvCache* cache = nullptr) override;
  Tensor output_weight() const override { return lm_head.weight; }
  nn::Module& head() override { return lm_head; }
  std::int64_t vocab_size() const override { return config_.vocab_size; }
  std::int64_t context_length() const override { return config_.context_length; }
  double training_flops_per_token(std::int64_t seqlen) const override;
  nlohmann::json config() const override;

  struct Model : nn::Module {
    explicit Model(const LlamaConfig& config);
    nn::Embedding embed_tokens;
    nn::ModuleList<LlamaBlock> layers;
    nn::RMSNorm norm;
  } model;
  nn::Linear lm_head;

 private:
  LlamaConfig config_;
};

}  // namespace ergon::models
