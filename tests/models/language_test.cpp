#include <cmath>
#include <filesystem>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/autograd.h"
#include "models/io/safetensors.h"
#include "models/language/generate.h"
#include "models/language/gpt2.h"
#include "models/language/llama.h"
#include "optim/adamw.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using models::GPT2;
using models::GPT2Config;
using models::Llama;
using models::LlamaConfig;

const GPT2Config kSmallGpt2{
    .vocab_size = 61, .context_length = 16, .hidden_size = 24, .num_layers = 2, .num_heads = 3};
const LlamaConfig kSmallLlama{.vocab_size = 61,
                              .context_length = 16,
                              .hidden_size = 24,
                              .intermediate_size = 40,
                              .num_layers = 2,
                              .num_heads = 4,
                              .num_heads_kv = 2,
                              .head_dim = 6};

std::string scratch(const std::string& name) {
  const std::string path = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(path);
  return path;
}

Tensor tokens(std::int64_t batch, std::int64_t seqlen, std::uint64_t seed = 1) {
  Generator generator(seed);
  return randint(0, 61, {batch, seqlen}, {DType::i64}, generator);
}

TEST(GPT2, HasThePublishedSizesAndNames) {
  EXPECT_EQ(GPT2(kSmallGpt2).state_dict()[0].first, "transformer.wte.weight");
  const auto by_name = [](const NamedTensors& state, const std::string& wanted) {
    for (const auto& [name, tensor] : state) {
      if (name == wanted) return tensor.shape();
    }
    return Shape{};
  };
  GPT2 model(kSmallGpt2);
  const NamedTensors state = model.state_dict();
  EXPECT_EQ(by_name(state, "transformer.h.1.attn.c_attn.weight"), (Shape{24, 72}));
  EXPECT_EQ(by_name(state, "transformer.h.0.mlp.c_proj.weight"), (Shape{96, 24}));
  EXPECT_EQ(by_name(state, "transformer.ln_f.bias"), (Shape{24}));
  EXPECT_EQ(state.size(), 4u + 2 * 12);
  // 124M: the published 124,439,808 parameters, by the formula of the shapes.
  const GPT2Config full = GPT2Config::named("gpt2");
  const std::int64_t C = full.hidden_size;
  EXPECT_EQ(full.vocab_size * C + full.context_length * C + full.num_layers * (12 * C * C + 13 * C) + 2 * C,
            124439808);
  EXPECT_EQ(model.num_parameters(), 61 * 24 + 16 * 24 + 2 * (12 * 24 * 24 + 13 * 24) + 2 * 24);
}

TEST(GPT2, StartsNearTheUniformLoss) {
  manual_seed(1);
  GPT2 model(kSmallGpt2);
  EXPECT_NEAR(model.loss(tokens(2, 16), tokens(2, 16, 2)).item<double>(), std::log(61.0), 0.1);
}

template <class Model>
void expect_causal(Model& model) {
  NoGradGuard no_grad;
  const Tensor a = tokens(1, 12);
  Tensor b = a.clone();
  b.slice(1, 7, 12).copy_(tokens(1, 5, 9));
  const Tensor logits_a = model.logits(a), logits_b = model.logits(b);
  EXPECT_TRUE(test::near(logits_a.slice(1, 0, 7), logits_b.slice(1, 0, 7), {.atol = 1e-6}));
  EXPECT_FALSE(test::near(logits_a.slice(1, 7, 12), logits_b.slice(1, 7, 12), {.atol = 1e-3}));
}

TEST(GPT2, IsCausal) {
  GPT2 model(kSmallGpt2);
  expect_causal(model);
}

TEST(Llama, IsCausal) {
  Llama model(kSmallLlama);
  expect_causal(model);
}

// Loss and logits are computed by different kernels.
template <class Model>
void expect_loss_matches_logits(Model& model) {
  const Tensor x = tokens(2, 9), y = tokens(2, 9, 3);
  const std::vector<double> logits = model.logits(x).template to_vector<double>(),
                            targets = y.to_vector<double>();
  double loss = 0;
  for (std::size_t row = 0; row < targets.size(); ++row) {
    double sum = 0;
    for (std::size_t c = 0; c < 61; ++c) sum += std::exp(logits[row * 61 + c]);
    loss += (std::log(sum) - logits[row * 61 + static_cast<std::size_t>(targets[row])])
            / static_cast<double>(targets.size());
  }
  EXPECT_NEAR(model.loss(x, y).template item<double>(), loss, 1e-5 * loss);
}

TEST(GPT2, LossMatchesLogits) {
  GPT2 model(kSmallGpt2);
  expect_loss_matches_logits(model);
}

TEST(Llama, LossMatchesLogits) {
  Llama model(kSmallLlama);
  expect_loss_matches_logits(model);
}

// The gradient of the whole model against differences of its loss, in f64.
template <class Model>
void expect_gradients(Model& model) {
  model.to(DType::f64);
  const Tensor x = tokens(1, 5), y = tokens(1, 5, 3);
  model.loss(x, y).backward();
  NoGradGuard no_grad;
  for (auto& [name, parameter] : model.named_parameters()) {
    const std::int64_t i = parameter.numel() / 2;
    double* element = parameter.template data<double>() + i;
    const double original = *element, eps = 1e-6;
    *element = original + eps;
    const double above = model.loss(x, y).template item<double>();
    *element = original - eps;
    const double below = model.loss(x, y).template item<double>();
    *element = original;
    const double numeric = (above - below) / (2 * eps);
    EXPECT_NEAR(parameter.grad().template to_vector<double>()[static_cast<std::size_t>(i)], numeric,
                1e-8 + 1e-5 * std::abs(numeric))
        << name;
  }
}

TEST(GPT2, GradientsOfEveryParameter) {
  GPT2 model(kSmallGpt2);
  expect_gradients(model);
}

TEST(Llama, GradientsOfEveryParameter) {
  Llama model(kSmallLlama);
  expect_gradients(model);
}

TEST(LanguageModels, SaveAndLoadKeepEveryBit) {
  for (const bool llama : {false, true}) {
    manual_seed(11);
    std::unique_ptr<models::CausalLM> model;
    if (llama) {
      model = std::make_unique<Llama>(kSmallLlama);
    } else {
      model = std::make_unique<GPT2>(kSmallGpt2);
    }
    const std::string folder = scratch("language_model");
    models::save_language_model(*model, folder);
    manual_seed(11);
    const auto loaded = models::load_language_model(folder);
    EXPECT_EQ(default_generator().next(), Generator(11).next()) << "initialised at random before it was read";
    EXPECT_TRUE(equal_bits(model->logits(tokens(2, 7)), loaded->logits(tokens(2, 7))));
    EXPECT_EQ(model->config(), loaded->config());
  }
}

// openai-community/gpt2 on the hub: no "transformer." prefix, and the causal masks as buffers.
TEST(LanguageModels, LoadsTheNamesOfTheOriginalGpt2File) {
  GPT2 model(kSmallGpt2);
  const std::string folder = scratch("original_gpt2");
  models::save_language_model(model, folder);
  NamedTensors original{{"h.0.attn.bias", ones({1, 1, 16, 16})}, {"h.1.attn.bias", ones({1, 1, 16, 16})}};
  for (const auto& [name, tensor] : model.state_dict())
    original.emplace_back(name.substr(std::string("transformer.").size()), tensor);
  io::write_safetensors(folder + "/model.safetensors", original);
  EXPECT_TRUE(
      equal_bits(models::load_language_model(folder)->logits(tokens(1, 4)), model.logits(tokens(1, 4))));
}

TEST(LanguageModels, ConfigErrorsNameTheKey) {
  const auto error = [](const char* key, const nlohmann::json& value, nlohmann::json config) {
    config[key] = value;
    return test::error_of([&] { models::make_language_model(config); });
  };
  const nlohmann::json gpt2 = kSmallGpt2.to_json(), llama = kSmallLlama.to_json();
  EXPECT_EQ(error("n_head", 5, gpt2), "[gpt2] n_embd 24 must be a multiple of n_head 5");
  EXPECT_EQ(error("n_layer", -1, gpt2), "[gpt2] config.json: n_layer is -1: expected a number in [1, 2^31)");
  EXPECT_EQ(error("n_layer", "two", gpt2), "[gpt2] config.json: n_layer is \"two\": expected an integer");
  EXPECT_EQ(error("n_layer", nullptr, gpt2), "[gpt2] config.json: n_layer is missing");
  EXPECT_EQ(error("activation_function", "relu", gpt2),
            "[gpt2] config.json: activation_function is \"relu\": only \"gelu_new\" is supported");
  EXPECT_EQ(error("num_key_value_heads", 3, llama),
            "[llama] num_attention_heads 4 must be a multiple of num_key_value_heads 3");
  EXPECT_EQ(error("model_type", "bert", gpt2),
            "config.json: model_type is \"bert\": expected \"gpt2\" or \"llama\"");
  EXPECT_EQ(test::error_of([] { GPT2Config::named("125M"); }),
            "unknown GPT-2 size '125M': expected gpt2 (124M), gpt2-medium (355M), gpt2-large (774M) or "
            "gpt2-xl (1558M)");
}

TEST(LanguageModels, TokensThatDoNotFitAreNamed) {
  GPT2 model(kSmallGpt2);
  EXPECT_EQ(test::error_of([&] {
              model.logits(zeros({1, 17}, {DType::i64}));
            }),
            "[gpt2] 17 tokens are more than the context length 16");
  EXPECT_EQ(test::error_of([&] { model.logits(zeros({4}, {DType::i64})); }),
            "[gpt2] tokens of shape (4,): expected (batch, seqlen)");
}

TEST(Generate, IsReproducibleAndGreedyAtTemperatureZero) {
  GPT2 model(kSmallGpt2);
  const std::vector<std::int64_t> prompt{1, 2, 3};
  const auto first = models::generate(model, prompt, {.max_new_tokens = 20, .seed = 5});
  EXPECT_EQ(first, models::generate(model, prompt, {.max_new_tokens = 20, .seed = 5}));
  EXPECT_NE(first, models::generate(model, prompt, {.max_new_tokens = 20, .seed = 6}));
  const auto greedy = models::generate(model, prompt, {.max_new_tokens = 4, .temperature = 0});
  EXPECT_EQ(greedy, models::generate(model, prompt, {.max_new_tokens = 4, .top_k = 1}));
  EXPECT_EQ(greedy, models::generate(model, prompt, {.max_new_tokens = 4, .top_p = 1e-9}));
  EXPECT_EQ(test::error_of([&] { models::generate(model, {}, {}); }),
            "[generate] the prompt has no tokens: expected at least one");
  EXPECT_EQ(test::error_of([&] { models::generate(model, {61}, {}); }),
            "[generate] token 61 is outside the vocabulary of 61");
}

// Token by token from a cache, side by side and in pages: the logits of the whole text read at once, up to
// sums in another order.
template <class Model>
void expect_cache_changes_nothing(Model& model) {
  NoGradGuard no_grad;
  const Tensor text = tokens(2, 16);
  for (const std::int64_t page_size : {0, 3}) {
    models::KvCache cache(16, page_size);
    std::int64_t read = 0;
    for (const std::int64_t count : {5, 1, 1, 4, 5}) {
      const Tensor next = model.next_token_logits(text.slice(1, read, read + count), &cache);
      read += count;
      EXPECT_EQ(cache.length(), read);
      EXPECT_TRUE(test::near(next, model.next_token_logits(text.slice(1, 0, read)), {.atol = 1e-5}))
          << read << " tokens, pages of " << page_size;
    }
  }
}

TEST(GPT2, ACacheChangesNothing) {
  GPT2 model(kSmallGpt2);
  expect_cache_changes_nothing(model);
}

TEST(Llama, ACacheChangesNothing) {
  Llama model(kSmallLlama);
  expect_cache_changes_nothing(model);
}

TEST(Generate, TheCacheChangesNoToken) {
  GPT2 gpt2(kSmallGpt2);
  Llama llama(kSmallLlama);
  for (models::CausalLM* model :
       {static_cast<models::CausalLM*>(&gpt2), static_cast<models::CausalLM*>(&llama)}) {
    // Beyond the context too, where the oldest tokens are left out.
    const std::vector<std::int64_t> prompt{1, 2, 3};
    const auto cached = models::generate(*model, prompt, {.max_new_tokens = 20, .seed = 5});
    EXPECT_EQ(cached,
              models::generate(*model, prompt, {.max_new_tokens = 20, .seed = 5, .use_cache = false}));
  }
}

TEST(KvCache, ErrorsNameTheLengths) {
  GPT2 model(kSmallGpt2);
  models::KvCache cache(10);
  EXPECT_EQ(test::error_of([&] { model.next_token_logits(tokens(1, 4), &cache); }),
            "[kv_cache] gradients do not flow through a cache: use NoGradGuard");
  NoGradGuard no_grad;
  model.next_token_logits(tokens(1, 8), &cache);
  EXPECT_EQ(test::error_of([&] { model.next_token_logits(tokens(1, 3), &cache); }),
            "[kv_cache] 3 tokens after 8: expected at most 10 in all");
  EXPECT_EQ(test::error_of([&] { model.next_token_logits(tokens(1, 9), &cache); }),
            "[gpt2] 17 tokens are more than the context length 16");
  EXPECT_EQ(test::error_of([&] { model.next_token_logits(tokens(2, 1), &cache); }),
            "[kv_cache] batch 2: expected 1, as in the tokens before");
}

// A model that repeats its input is learnt in a few hundred steps; afterwards generation shows it.
TEST(GPT2, LearnsToCount) {
  manual_seed(1);
  GPT2 model({.vocab_size = 16, .context_length = 16, .hidden_size = 32, .num_layers = 1, .num_heads = 2});
  optim::AdamW optimizer(model.named_parameters(), {.lr = 3e-3});
  Generator generator(2);
  double loss_value = 0;
  for (int step = 0; step < 150; ++step) {
    std::vector<std::int64_t> values;
    for (int row = 0; row < 8; ++row) {
      const auto start = static_cast<std::int64_t>(generator.below(16));
      for (std::int64_t i = 0; i < 17; ++i) values.push_back((start + i) % 16);
    }
    const Tensor window = from_vector(values, {8, 17}, {DType::i64});
    const Tensor loss = model.loss(window.slice(1, 0, 16), window.slice(1, 1, 17));
    loss.backward();
    optimizer.step();
    optimizer.zero_grad();
    loss_value = loss.item<double>();
  }
  EXPECT_LT(loss_value, 0.1);
  EXPECT_EQ(models::generate(model, {14}, {.max_new_tokens = 4, .temperature = 0}),
            (std::vector<std::int64_t>{15, 0, 1, 2}));
}

}  // namespace
}  // namespace ergon
