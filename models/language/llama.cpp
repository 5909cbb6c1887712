#include "models/language/llama.h"

#include "models/language/config_json.h"
#include "models/nn/init.h"
#include "ops/arithmetic.h"
#include "ops/rotary_embedding.h"
#include "ops/swiglu.h"

namespace ergon::models {
namespace {

constexpr nn::LinearOptions kNoBias{.bias = false};

}  // namespace

LlamaAttention::LlamaAttention(const LlamaConfig& config)
    : q_proj(config.hidden_size, config.num_heads * config.head_dim, kNoBias),
      k_proj(config.hidden_size, config.num_heads_kv * config.head_dim, kNoBias),
      v_proj(config.hidden_size, config.num_heads_kv * config.head_dim, kNoBias),
      o_proj(config.num_heads * config.head_dim, config.hidden_size, kNoBias),
      head_dim_(config.head_dim),
      rope_theta_(config.rope_theta) {
  register_module("q_proj", q_proj);
  register_module("k_proj", k_proj);
  register_module("v_proj", v_proj);
  register_module("o_proj", o_proj);
}

Tensor LlamaAttention::forward(const Tensor& input, std::int64_t position, KvCache::Layer* cache) {
  const std::int64_t batch = input.size(0), seqlen = input.size(1);
  const auto heads = [&](const Tensor& t) { return t.view({batch, seqlen, -1, head_dim_}); };
  const ops::RotaryOptions rotary{.theta = rope_theta_, .position_offset = position};
  return call(
      [&](const Tensor& x) {
        const Tensor q = ops::rotary_embedding(heads(q_proj(x)), rotary);
        const Tensor k = ops::rotary_embedding(heads(k_proj(x)), rotary);
        const Tensor o = attend_causally(q, k, heads(v_proj(x)), cache);
        return o_proj(o.view({batch, seqlen, -1}));
      },
      input);
}

LlamaMlp::LlamaMlp(const LlamaConfig& config)
    : gate_proj(config.hidden_size, config.intermediate_size, kNoBias),
      up_proj(config.hidden_size, config.intermediate_size, kNoBias),
      down_proj(config.intermediate_size, config.hidden_size, kNoBias) {
  register_module("gate_proj", gate_proj);
  register_module("up_proj", up_proj);
  register_module("down_proj", down_proj);
}

Tensor LlamaMlp::forward(const Tensor& x) { return down_proj(ops::swiglu(gate_proj(x), up_proj(x))); }

LlamaBlock::LlamaBlock(const LlamaConfig& config)
    : input_layernorm(config.hidden_size, config.rms_norm_eps),
      self_attn(config),
      post_attention_layernorm(config.hidden_size, config.rms_norm_eps),
      mlp(config) {
  register_module("input_layernorm", input_layernorm);
  register_module("self_attn", self_attn);
  register_module("post_attention_layernorm", post_attention_layernorm);
  register_module("mlp", mlp);
}

Tensor LlamaBlock::forward(const Tensor& input, std::int64_t position, KvCache::Layer* cache) {
  return call(
      [&](const Tensor& x) {
        const auto [normed, residual] =
            post_attention_layernorm.forward_add(self_attn.forward(input_layernorm(x), position, cache), x);
        return residual + mlp(normed);
      },
      input);
}

Llama::Model::Model(const LlamaConfig& config)
    : embed_tokens(config.vocab_size, config.hidden_size), norm(config.hidden_size, config.rms_norm_eps) {
  for (std::int64_t i = 0; i < config.num_layers; ++i) layers.emplace_back(config);
  register_module("embed_tokens", embed_tokens);
  register_module("layers", layers);
  register_module("norm", norm);
}

Llama::Llama(const LlamaConfig& config)
    : model((config.validate(), config)),
      lm_head(config.hidden_size, config.vocab_size, kNoBias),
      config_(config) {
  register_module("model", model);
  register_module("lm_head", lm_head);
  if (config.tie_word_embeddings) lm_head.weight = model.embed_tokens.weight;
  for (auto& [name, parameter] : named_parameters()) {
    if (parameter.dim() == 2) nn::init::normal_(parameter, 0, config.initializer_range);
  }
}

Tensor Llama::hidden_states(const Tensor& tokens, KvCache* cache) {
  const std::int64_t first = first_position("llama", tokens, config_.context_length, cache);
  Tensor x = model.embed_tokens(tokens);
  for (std::int64_t i = 0; i < model.layers.size(); ++i)
    x = model.layers[i].forward(x, first, cache == nullptr ? nullptr : &cache->layer(i));
  return model.norm(x);
}

double Llama::training_flops_per_token(std::int64_t seqlen) const {
  const std::int64_t lookup_only = config_.tie_word_embeddings ? 0 : model.embed_tokens.weight.numel();
  return 6.0 * static_cast<double>(num_parameters() - lookup_only)
         + 12.0 * static_cast<double>(config_.num_layers * config_.num_heads * config_.head_dim * seqlen);
}

nlohmann::json Llama::config() const { return config_.to_json(); }

}  // namespace ergon::models
