#pragma once

// GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners"), with the parameter
// names, shapes and config.json of Hugging Face's implementation.

#include <string_view>

#include "models/language/causal_lm.h"
#include "models/nn/layers.h"

namespace ergon::models {

struct GPT2Config {
  std::int64_t vocab_size = 50257;
  std::int64_t context_length = 1024;
  std::int64_t hidden_size = 768;
  std::int64_t num_layers = 12;
  std::int64_t num_heads = 12;
  double dropout = 0;  // after the embeddings, the attention and the MLP
  double layer_norm_eps = 1e-5;

  // "gpt2" (124M), "gpt2-medium" (355M), "gpt2-large" (774M), "gpt2-xl" (1.6B); also "124M", "355M", "774M",
  // "1558M". Throws Error for another name.
  static GPT2Config named(std::string_view name);
  static GPT2Config from_json(const nlohmann::json& json);
  nlohmann::json to_json() const;
  // Throws Error naming the field if the values do not make a model.
  void validate() const;
};

class GPT2Attention : public nn::Module {
 public:
  explicit GPT2Attention(const GPT2Config& config);
  Tensor forward(const Tensor& input, KvCache::Layer* cache = nullptr);  // (batch, seqlen, hidden_size)

  nn::Linear c_attn, c_proj;

 private:
  std::int64_t num_heads_;
};

class GPT2Mlp : public nn::Layer {
 public:
  explicit GPT2Mlp(const GPT2Config& config);
  Tensor forward(const Tensor& x) override;

  nn::Linear c_fc, c_proj;
};

class GPT2Block : public nn::Module {
 public:
  explicit GPT2Block(const GPT2Config& config);
  Tensor forward(const Tensor& input, KvCache::Layer* cache = nullptr);

  nn::LayerNorm ln_1;
  GPT2Attention attn;
  nn::LayerNorm ln_2;
  GPT2Mlp mlp;

 private:
  nn::Dropout dropout_;
};

class GPT2 : public CausalLM {
 public:
  // Initialised as GPT-2 was: normal with standard deviation 0.02, the projections back into the residual
  // stream scaled by 1 / sqrt(2 * num_layers).
  explicit GPT2(const GPT2Config& config);

  Tensor hidden_states(const Tensor& tokens, KvCache* cache = nullptr) override;
  Tensor output_weight() const override { return transformer.wte.weight; }
  nn::Module& head() override { return lm_head; }
  std::int64_t vocab_size() const override { return config_.vocab_size; }
  std::int64_t context_length() const override { return config_.context_length; }
  double training_flops_per_token(std::int64_t seqlen) const override;
  nlohmann::json config() const override;

  struct Transformer : nn::Module {
    explicit Transformer(const GPT2Config& config);
    nn::Embedding wte, wpe;
    nn::Dropout drop;
    nn::ModuleList<GPT2Block> h;
    nn::LayerNorm ln_f;
  } transformer;
  nn::Module lm_head;  // the product with transformer.wte.weight

 private:
  GPT2Config config_;
};

}  // namespace ergon::models
