#include "models/language/gpt2.h"

#include <cmath>
#include <utility>

#include "models/language/config_json.h"
#include "models/nn/init.h"
#include "ops/arithmetic.h"

namespace ergon::models {
namespace {

// GPT-2's Conv1D keeps its weights as (in, out).
constexpr nn::LinearOptions kConv1D{.layout = nn::WeightLayout::in_out};

}  // namespace

GPT2Attention::GPT2Attention(const GPT2Config& config)
    : c_attn(config.hidden_size, 3 * config.hidden_size, kConv1D),
      c_proj(config.hidden_size, config.hidden_size, kConv1D),
      num_heads_(config.num_heads) {
  register_module("c_attn", c_attn);
  register_module("c_proj", c_proj);
}

Tensor GPT2Attention::forward(const Tensor& input, KvCache::Layer* cache) {
  const std::int64_t batch = input.size(0), seqlen = input.size(1), width = input.size(2);
  const auto heads = [&](const Tensor& t) { return t.view({batch, seqlen, num_heads_, width / num_heads_}); };
  return call(
      [&](const Tensor& x) {
        const std::vector<Tensor> qkv = chunk(c_attn(x), 3, 2);  // (batch, seqlen, width) each
        const Tensor o = attend_causally(heads(qkv[0]), heads(qkv[1]), heads(qkv[2]), cache);
        return c_proj(o.view({batch, seqlen, width}));
      },
      input);
}

GPT2Mlp::GPT2Mlp(const GPT2Config& config)
    : c_fc(config.hidden_size, 4 * config.hidden_size, kConv1D),
      c_proj(4 * config.hidden_size, config.hidden_size, kConv1D) {
  register_module("c_fc", c_fc);
  register_module("c_proj", c_proj);
}

Tensor GPT2Mlp::forward(const Tensor& x) { return c_proj(c_fc.forward(x, ops::Activation::gelu_tanh)); }

GPT2Block::GPT2Block(const GPT2Config& config)
    : ln_1(config.hidden_size, config.layer_norm_eps),
      attn(config),
      ln_2(config.hidden_size, config.layer_norm_eps),
      mlp(config),
      dropout_(config.dropout) {
  register_module("ln_1", ln_1);
  register_module("attn", attn);
  register_module("ln_2", ln_2);
  register_module("mlp", mlp);
  register_module("dropout", dropout_);
}

Tensor GPT2Block::forward(const Tensor& input, KvCache::Layer* cache) {
  return call(
      [&](const Tensor& x) {
        const auto [normed, residual] = ln_2.forward_add(dropout_(attn.forward(ln_1(x), cache)), x);
        return residual + dropout_(mlp(normed));
      },
      input);
}

GPT2::Transformer::Transformer(const GPT2Config& config)
    : wte(config.vocab_size, config.hidden_size),
      wpe(config.context_length, config.hidden_size),
      drop(config.dropout),
      ln_f(config.hidden_size, config.layer_norm_eps) {
  for (std::int64_t i = 0; i < config.num_layers; ++i) h.emplace_back(config);
  register_module("wte", wte);
  register_module("wpe", wpe);
  register_module("drop", drop);
  register_module("h", h);
  register_module("ln_f", ln_f);
}

GPT2::GPT2(const GPT2Config& config) : transformer((config.validate(), config)), config_(config) {
  register_module("transformer", transformer);
  register_module("lm_head", lm_head);
  const double residual_std = 0.02 / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  for (auto& [name, parameter] : named_parameters()) {
    if (name.ends_with(".bias")) {
      nn::init::constant_(parameter, 0);
    } else if (name.ends_with("c_proj.weight")) {
      nn::init::normal_(parameter, 0, residual_std);
    } else if (parameter.dim() == 2) {
      nn::init::normal_(parameter, 0, 0.02);
    }
  }
}

Tensor GPT2::hidden_states(const Tensor& tokens, KvCache* cache) {
  const std::int64_t first = first_position("gpt2", tokens, config_.context_length, cache);
  const Tensor positions =
      transformer.wpe.weight.slice(0, first, first + tokens.size(1));  // (seqlen, hidden_size)
  Tensor x = transformer.drop(transformer.wte(tokens) + positions);
  for (std::int64_t i = 0; i < transformer.h.size(); ++i)
    x = transformer.h[i].forward(x, cache == nullptr ? nullptr : &cache->layer(i));
  return transformer.ln_f(x);
}

double GPT2::training_flops_per_token(std::int64_t seqlen) const {
  const std::int64_t matmul_parameters = num_parameters() - transformer.wpe.weight.numel();
  return 6.0 * static_cast<double>(matmul_parameters)
         + 12.0 * static_cast<double>(config_.num_layers * config_.hidden_size * seqlen);
}

nlohmann::json GPT2::config() const { return config_.to_json(); }

}  // namespace ergon::models
