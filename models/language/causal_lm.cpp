#include "models/language/causal_lm.h"

#include <array>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "models/io/checkpoint.h"
#include "models/io/json.h"
#include "models/io/safetensors.h"
#include "models/language/gpt2.h"
#include "models/language/llama.h"
#include "models/nn/init.h"
#include "ops/cross_entropy.h"
#include "ops/linear.h"

namespace ergon::models {
namespace {

// Names in the file → names in the model: a base model's file lacks the prefix ("wte.weight" for
// "transformer.wte.weight"), and older ones hold constants that are not parameters.
NamedTensors model_names(const NamedTensors& tensors, const std::string& prefix) {
  constexpr std::array<std::string_view, 3> kConstants{".attn.bias", ".attn.masked_bias",
                                                       ".rotary_emb.inv_freq"};
  bool prefixed = false;
  for (const auto& [name, tensor] : tensors) prefixed |= name.starts_with(prefix);
  NamedTensors result;
  for (const auto& [name, tensor] : tensors) {
    bool constant = false;
    for (std::string_view suffix : kConstants) constant |= name.ends_with(suffix);
    if (constant) continue;
    result.emplace_back(prefixed || name == "lm_head.weight" ? name : prefix + name, tensor);
  }
  return result;
}

std::unique_ptr<CausalLM> build(const nlohmann::json& config, const NamedTensors& tensors) {
  std::unique_ptr<CausalLM> model;
  {
    const nn::init::SkipGuard skip;
    model = make_language_model(config);
  }
  model->load_state_dict(model_names(tensors, config.at("model_type") == "gpt2" ? "transformer." : "model."));
  return model;
}

}  // namespace

Tensor CausalLM::logits(const Tensor& tokens) {
  return head().call([this](const Tensor& hidden) { return ops::linear(hidden, output_weight()); },
                     hidden_states(tokens));
}

Tensor CausalLM::next_token_logits(const Tensor& tokens, KvCache* cache) {
  return head().call([this](const Tensor& hidden) { return ops::linear(hidden, output_weight()); },
                     hidden_states(tokens, cache).select(1, -1));
}

Tensor CausalLM::loss(const Tensor& tokens, const Tensor& targets) {
  return head().call(
      [&](const Tensor& hidden) { return ops::linear_cross_entropy(hidden, output_weight(), targets); },
      hidden_states(tokens));
}

std::unique_ptr<CausalLM> make_language_model(const nlohmann::json& config) {
  ERGON_CHECK(config.is_object(), "config.json: expected an object, got {}", config.type_name());
  const nlohmann::json type = config.value("model_type", nlohmann::json());
  if (type == "gpt2") return std::make_unique<GPT2>(GPT2Config::from_json(config));
  if (type == "llama") return std::make_unique<Llama>(LlamaConfig::from_json(config));
  ERGON_FAIL("config.json: model_type is {}: expected \"gpt2\" or \"llama\"", type.dump());
}

std::unique_ptr<CausalLM> load_language_model(const std::string& folder) {
  if (std::filesystem::exists(folder + "/manifest.json")) {  // a checkpoint: verified against its checksums
    const io::Checkpoint checkpoint = io::load_checkpoint(folder);
    return build(checkpoint.config, checkpoint.model);
  }
  return build(io::read_json(folder + "/config.json"), io::read_safetensors(folder));
}

void save_language_model(const CausalLM& model, const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  ERGON_CHECK(!error, "cannot make the folder {}: {}", folder, error.message());
  io::write_json(folder + "/config.json", model.config());
  io::write_safetensors(folder + "/model.safetensors", model.state_dict());
}

}  // namespace ergon::models
