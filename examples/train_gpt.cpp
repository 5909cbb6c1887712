// Trains a GPT-2 or Llama-style model on a text file or a folder of them.

#include <iostream>

#include <CLI/CLI.hpp>

#include "core/autocast.h"
#include "core/log.h"
#include "examples/support/cli.h"
#include "models/data/text_dataset.h"
#include "models/data/tokenizer.h"
#include "models/language/generate.h"
#include "models/language/gpt2.h"
#include "models/language/llama.h"
#include "models/language/training_task.h"
#include "optim/adamw.h"

using namespace ergon;

namespace {

struct Options {
  std::string data;
  std::string architecture = "gpt2";
  std::string size;  // a named GPT-2; empty: the sizes below
  std::string init_from;
  std::int64_t layers = 4, heads = 4, kv_heads = 0, width = 128, context = 64;
  double dropout = 0;
  double validation_fraction = 0.1;
  models::LanguageTaskOptions task;
  cli::CommonOptions common;
  std::string sample = "\n";
  std::int64_t sample_tokens = 300;
};

void add_options(CLI::App& app, Options& o) {
  cli::add_common_options(app, o.common);
  auto* data = app.add_option_group("Data");
  data->add_option("--data", o.data, "Text file, or folder of text files")->required();
  data->add_option("--validation-fraction", o.validation_fraction,
                   "Share of the text, at its end, held out for evaluation")
      ->capture_default_str();
  data->add_option("--batch", o.task.batch, "Sequences in a micro-batch")->capture_default_str();
  data->add_option("--context", o.context, "Tokens in a sequence")->capture_default_str();
  data->add_option("--eval-batches", o.task.eval_batches, "Batches in an evaluation")->capture_default_str();

  auto* model = app.add_option_group("Model");
  model->add_option("--model", o.architecture, "gpt2 or llama")
      ->check(CLI::IsMember({"gpt2", "llama"}))
      ->capture_default_str();
  model->add_option("--size", o.size,
                    "A GPT-2 by name: 124M, 355M, 774M, 1558M (sets layers, heads and width)");
  model->add_option("--init-from", o.init_from, "Start from the model in this folder (Hugging Face's files)");
  model->add_option("--layers", o.layers)->capture_default_str();
  model->add_option("--heads", o.heads)->capture_default_str();
  model->add_option("--kv-heads", o.kv_heads, "Key/value heads of llama; 0: as many as heads")
      ->capture_default_str();
  model->add_option("--width", o.width, "Hidden size")->capture_default_str();
  model->add_option("--dropout", o.dropout)->capture_default_str();

  auto* sample = app.add_option_group("Sample");
  sample->add_option("--sample", o.sample, "Prompt of the text that is generated at the end")
      ->capture_default_str();
  sample->add_option("--sample-tokens", o.sample_tokens, "Its length; 0: none")->capture_default_str();
}

std::unique_ptr<models::CausalLM> make_model(const Options& o, std::int64_t vocab_size) {
  if (!o.init_from.empty()) {
    auto model = models::load_language_model(o.init_from);
    ERGON_CHECK(model->vocab_size() >= vocab_size,
                "{} has a vocabulary of {}, the data's tokenizer one of {}", o.init_from, model->vocab_size(),
                vocab_size);
    return model;
  }
  if (o.architecture == "llama") {
    const std::int64_t kv_heads = o.kv_heads > 0 ? o.kv_heads : o.heads;
    ERGON_CHECK(o.heads > 0 && o.width % o.heads == 0, "--width {} must be a multiple of --heads {}", o.width,
                o.heads);
    return std::make_unique<models::Llama>(
        models::LlamaConfig{.vocab_size = vocab_size,
                            .context_length = o.context,
                            .hidden_size = o.width,
                            .intermediate_size = (8 * o.width / 3 + 63) / 64 * 64,
                            .num_layers = o.layers,
                            .num_heads = o.heads,
                            .num_heads_kv = kv_heads,
                            .head_dim = o.width / o.heads});
  }
  models::GPT2Config config{.hidden_size = o.width, .num_layers = o.layers, .num_heads = o.heads};
  if (!o.size.empty()) config = models::GPT2Config::named(o.size);
  config.vocab_size = vocab_size;
  config.context_length = o.context;
  config.dropout = o.dropout;
  return std::make_unique<models::GPT2>(config);
}

void print_sample(models::CausalLM& model, const data::Tokenizer& tokenizer, const Options& o) {
  if (o.sample_tokens == 0) return;
  std::cout << "\nSample:\n" << o.sample << std::flush;
  models::generate(
      model, models::as_prompt(tokenizer.encode(o.sample)),
      {.max_new_tokens = o.sample_tokens, .temperature = 0.8, .top_k = 200, .seed = o.common.seed},
      [&](std::int64_t token) {
        const auto byte = static_cast<std::int32_t>(token);
        std::cout << tokenizer.decode(std::span(&byte, 1)) << std::flush;
        return true;
      });
  std::cout << "\n";
}

void run(const CLI::App& app, Options& o) {
  o.common.trainer.run_config = cli::run_config(app);
  const Device device = cli::device_of(o.common.device);
  manual_seed(o.common.seed);
  const data::ByteTokenizer tokenizer;
  trainer::make_output_folder(o.common.trainer.output_dir);
  const data::TextDataset text = data::load_text(
      o.data, tokenizer,
      {.cache_folder = o.common.trainer.output_dir + "/data", .validation_fraction = o.validation_fraction});
  const std::unique_ptr<models::CausalLM> model = make_model(o, tokenizer.vocab_size());
  model->to(device);
  std::cout << fmt::format("{} parameters, {} training and {} validation tokens, {}\n",
                           model->num_parameters(), text.train.size(), text.validation.size(),
                           cli::set_up_precision(*model, o.common.precision));

  o.task.seqlen = o.context;
  o.task.seed = o.common.seed;
  models::LanguageTask task(*model, text, o.task);
  const optim::AdamWOptions adamw = cli::set_up_training(*model, o.common);
  optim::AdamW optimizer(optim::decay_groups(model->named_parameters(), o.common.weight_decay), adamw);
  const trainer::TrainerResult result =
      trainer::train(task, optimizer, cli::schedule_of(o.common), o.common.trainer);
  cli::print_summary(result, task.sample_name(), device);
  const Autocast autocast(o.common.precision.dtype());
  if (!result.interrupted) print_sample(*model, tokenizer, o);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Trains a language model on text. The output folder receives checkpoints in Hugging Face's format,\n"
      "metrics.jsonl and a loss plot; Ctrl-C saves and stops, --resume goes on."};
  add_options(app, options);
  return cli::run_program(app, argc, argv, [&] { run(app, options); });
}
