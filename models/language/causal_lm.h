#pragma once

// What every decoder-only language model offers to the trainer, to generation and to checkpoints.

#include <cstdint>
#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "models/language/kv_cache.h"
#include "models/nn/module.h"

namespace ergon::models {

class CausalLM : public nn::Module {
 public:
  // tokens (batch, seqlen) i32 or i64 → the last hidden states (batch, seqlen, hidden_size), normalised. With
  // a cache the tokens come after those that it holds, and are stored in it.
  virtual Tensor hidden_states(const Tensor& tokens, KvCache* cache = nullptr) = 0;
  // The output projection, (vocab_size, hidden_size).
  virtual Tensor output_weight() const = 0;
  // The module that the product with it, and the loss, are part of.
  virtual nn::Module& head() = 0;

  virtual std::int64_t vocab_size() const = 0;
  virtual std::int64_t context_length() const = 0;  // the longest seqlen
  // Floating-point operations per token of one training step, forward and backward: 6 for each parameter in a
  // matrix product, and attention's 12 * layers * width * seqlen (Chowdhery et al. 2022, arXiv 2204.02311,
  // appendix B).
  virtual double training_flops_per_token(std::int64_t seqlen) const = 0;
  // Hugging Face's config.json.
  virtual nlohmann::json config() const = 0;

  // (batch, seqlen, vocab_size).
  Tensor logits(const Tensor& tokens);
  // Of the last position only: (batch, vocab_size).
  Tensor next_token_logits(const Tensor& tokens, KvCache* cache = nullptr);
  // Mean cross-entropy over targets (batch, seqlen), those equal to -100 left out; the logits of all
  // positions are never held at once.
  Tensor loss(const Tensor& tokens, const Tensor& targets);
};

// A model, randomly initialised, from a Hugging Face config.json: "model_type" gpt2 or llama.
// Throws Error naming the key, the expected and the actual for anything missing or out of range.
std::unique_ptr<CausalLM> make_language_model(const nlohmann::json& config);

// The model in a Hugging Face folder: config.json and model.safetensors (or its shards with
// model.safetensors.index.json). Names with or without the "transformer." or "model." prefix are accepted.
std::unique_ptr<CausalLM> load_language_model(const std::string& folder);

// Writes config.json and model.safetensors to `folder`, which is made if need be.
void save_language_model(const CausalLM& model, const std::string& folder);

}  // namespace ergon::models
