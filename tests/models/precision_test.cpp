// Modules in Autocast scopes, Module::precision, and the report of what half precision loses.

#include "models/nn/precision.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "models/language/gpt2.h"
#include "models/language/llama.h"
#include "models/nn/layers.h"
#include "models/trainer/numerics.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using models::GPT2;

GPT2 small_gpt2() {
  manual_seed(1);
  return GPT2({.vocab_size = 65, .context_length = 16, .hidden_size = 32, .num_layers = 2, .num_heads = 4});
}

Tensor tokens(std::uint64_t seed) {
  Generator generator(seed);
  return randint(0, 65, {2, 16}, {.dtype = DType::i64}, generator);
}

// The dtype of every module's result, by name.
std::map<std::string, DType> dtypes_of(models::CausalLM& model) {
  std::map<std::string, DType> dtypes;
  for (const auto& [name, module] : model.named_modules()) {
    module->on_output([&dtypes, name = name](const Tensor& output) { dtypes[name] = output.dtype(); });
  }
  model.loss(tokens(2), tokens(3));
  for (const auto& [name, module] : model.named_modules()) module->on_output({});
  return dtypes;
}

TEST(Precision, ProductsOfAModelAreInTheScopesDtypeAndTheRestInFp32) {
  GPT2 model = small_gpt2();
  const Autocast guard(DType::bf16);
  const std::map<std::string, DType> dtypes = dtypes_of(model);
  for (const char* name : {"transformer.h.1.attn", "transformer.h.1.attn.c_attn", "transformer.h.0.mlp.c_fc"})
    EXPECT_EQ(dtypes.at(name), DType::bf16) << name;
  for (const char* name :
       {"transformer.wte", "transformer.h.0", "transformer.h.0.ln_2", "transformer.ln_f", "lm_head"})
    EXPECT_EQ(dtypes.at(name), DType::f32) << name;
}

TEST(Precision, NamedModulesKeepTheirs) {
  GPT2 model = small_gpt2();
  const std::vector<std::string> named = nn::set_precision(model, "h.1, attn.c_*,lm_head", DType::f32);
  EXPECT_EQ(named, (std::vector<std::string>{"transformer.h.1", "transformer.h.0.attn.c_attn",
                                             "transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_attn",
                                             "transformer.h.1.attn.c_proj", "lm_head"}));
  const Autocast guard(DType::bf16);
  const std::map<std::string, DType> dtypes = dtypes_of(model);
  for (const auto& [name, dtype] : dtypes) {
    EXPECT_TRUE(dtype == DType::f32 || !name.starts_with("transformer.h.1")) << name;
  }
  for (const char* name : {"transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "lm_head"})
    EXPECT_EQ(dtypes.at(name), DType::f32) << name;
  for (const char* name : {"transformer.h.0.mlp.c_fc", "transformer.h.0.mlp"})
    EXPECT_EQ(dtypes.at(name), DType::bf16) << name;
}

TEST(Precision, AnUnknownPatternListsTheNames) {
  GPT2 model = small_gpt2();
  EXPECT_EQ(test::error_of([&] { nn::set_precision(model, "ln_f,ln_g", DType::f32); }),
            "no module is named 'ln_g': expected one of transformer, transformer.wte, transformer.wpe, "
            "transformer.drop, transformer.h, transformer.h.*, transformer.h.*.ln_1, transformer.h.*.attn, "
            "transformer.h.*.attn.c_attn, transformer.h.*.attn.c_proj, transformer.h.*.ln_2, "
            "transformer.h.*.mlp, transformer.h.*.mlp.c_fc, transformer.h.*.mlp.c_proj, "
            "transformer.h.*.dropout, transformer.ln_f, lm_head");
  EXPECT_EQ(test::error_of([&] { model.precision(DType::f64); }),
            "[precision] dtype f64: expected f32, bf16 or f16");
}

TEST(Precision, OfAModuleHoldsWithoutAScopeAndConvertsInputs) {
  nn::Linear layer(8, 4);
  const Tensor x = test::uniform({3, 8}), expected = layer(x);
  layer.precision(DType::bf16);
  Tensor leaf = x.clone().set_requires_grad(true);
  const Tensor low = layer(leaf);
  EXPECT_EQ(low.dtype(), DType::bf16);
  low.backward(ones({3, 4}, {DType::bf16}));
  EXPECT_EQ(leaf.grad().dtype(), DType::f32);
  layer.precision(DType::f32);
  const Autocast guard(DType::bf16);
  EXPECT_TRUE(equal_bits(layer(x), expected));
  EXPECT_TRUE(equal_bits(layer.forward(x, ops::Activation::none), expected));
  EXPECT_EQ(layer(x.to(DType::bf16)).dtype(), DType::f32);
  layer.precision(std::nullopt);
  EXPECT_EQ(layer(x).dtype(), DType::bf16);
}

// Micro-batches in one scope share the weights' copies; each in a scope of its own, they do not.
TEST(Precision, AccumulationInOneScopeGivesTheSameGradients) {
  const auto gradients = [](bool one_scope) {
    GPT2 model = small_gpt2();
    std::optional<Autocast> scope;
    for (std::uint64_t micro = 0; micro < 2; ++micro) {
      if (!scope || !one_scope) {
        scope.reset();
        scope.emplace(DType::bf16);
      }
      model.loss(tokens(micro), tokens(micro + 5)).backward();
    }
    std::vector<Tensor> result;
    for (const Tensor& parameter : model.parameters()) result.push_back(parameter.grad());
    return result;
  };
  const std::vector<Tensor> one = gradients(true), two = gradients(false);
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].dtype(), DType::f32);
    EXPECT_TRUE(equal_bits(one[i], two[i]));
  }
}

TEST(Precision, LlamaRunsInEveryDtypeCloseToFp32) {
  manual_seed(1);
  models::Llama model({.vocab_size = 65,
                       .context_length = 16,
                       .hidden_size = 32,
                       .intermediate_size = 64,
                       .num_layers = 2,
                       .num_heads = 4,
                       .num_heads_kv = 2,
                       .head_dim = 8});
  const double exact = model.loss(tokens(2), tokens(3)).item<double>();
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const Autocast guard(dtype);
    const Tensor loss = model.loss(tokens(2), tokens(3));
    loss.backward();
    // Logits near 0 give a loss near log(65) whatever rounding does: it moves them by less than one part in
    // 2^7 of their size, which is below 1.
    EXPECT_NEAR(loss.item<double>(), exact, 0x1p-7);
    EXPECT_NE(loss.item<double>(), exact);
  }
}

TEST(NumericsMonitor, SeesResultsAndGradientsOfTheModulesCalled) {
  struct Net : nn::Module {
    Net() : first(2, 2, {.bias = false}), second(2, 1, {.bias = false}), unused(3, 3) {
      register_module("first", first);
      register_module("second", second);
      register_module("unused", unused);
    }
    nn::Linear first, second, unused;
  } net;
  const std::vector<float> identity{1, 0, 0, 1}, row{1e-6f, 1e6f};
  {
    NoGradGuard no_grad;
    net.first.weight.copy_(from_vector(identity, {2, 2}));
    net.second.weight.copy_(from_vector(row, {1, 2}));
  }
  const std::vector<float> input{1, 2, 0, std::numeric_limits<float>::infinity()};
  trainer::NumericsMonitor monitor(net, DType::f16);
  const auto pass = [&] {
    net.second(net.first(from_vector(input, {2, 2}).slice(0, 0, 1))).backward(ones({1, 1}));
  };
  pass();  // unseen
  monitor.watch();
  pass();
  pass();
  const std::vector<trainer::ModuleNumerics> seen = monitor.take();
  pass();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].name, "first");
  EXPECT_EQ(seen[0].output.amax, 2);
  EXPECT_EQ(seen[0].gradient.amax, 1e6f);
  EXPECT_EQ(seen[0].gradient.underflow, 0.5);
  EXPECT_EQ(seen[0].gradient.overflow, 0.5);
  EXPECT_EQ(seen[1].output.amax, 2e6f);
  EXPECT_EQ(seen[1].gradient.amax, 1);
  EXPECT_EQ(trainer::to_json(seen, DType::f16)["modules"]["first"]["gradient"]["overflow"], 0.5);
  EXPECT_EQ(
      trainer::describe(seen, DType::f16),
      "numerics of 2 modules, as f16 would hold them:\n"
      "  first: output up to 2.00e+00, 0.0 % underflow; gradient up to 1.00e+06, 50.0 % underflow, 50.0 % "
      "overflow\n"
      "  second: output up to 2.00e+06, 0.0 % underflow, 100.0 % overflow; gradient up to 1.00e+00, 0.0 % "
      "underflow\n");
}

}  // namespace
}  // namespace ergon
