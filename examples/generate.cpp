// Continues a prompt with a trained language model.

#include "models/language/generate.h"

#include <chrono>
#include <filesystem>
#include <iostream>

#include <CLI/CLI.hpp>

#include "core/autocast.h"
#include "core/log.h"
#include "examples/support/cli.h"
#include "models/data/tokenizer.h"
#include "models/io/checkpoint.h"

using namespace ergon;

namespace {

// The folder with the model: itself, or the newest checkpoint of a training run.
std::string model_folder(const std::string& path) {
  if (std::filesystem::exists(path + "/config.json")) return path;
  const std::optional<std::filesystem::path> latest = io::latest_checkpoint(path + "/checkpoints");
  ERGON_CHECK(latest.has_value(),
              "{} holds no model: expected config.json and model.safetensors, or checkpoints/", path);
  return latest->string();
}

// How fast tokens came; the first apart from the others, as it waits for the prompt to be read.
class Speed {
 public:
  void count() {
    const Clock::time_point now = Clock::now();
    if (tokens_++ == 0) first_ = now;
    last_ = now;
  }
  std::string report() const {
    const std::chrono::duration<double> reading = first_ - start_, others = last_ - first_;
    if (tokens_ < 2) return fmt::format("{} token(s) in {:.2f} s", tokens_, reading.count());
    return fmt::format("{} tokens in {:.2f} s: the first after {:.2f} s, then {:.1f} tokens/s", tokens_,
                       (reading + others).count(), reading.count(),
                       static_cast<double>(tokens_ - 1) / others.count());
  }

 private:
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point first_ = start_, last_ = start_;
  std::int64_t tokens_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  std::string path, prompt = "\n", device = "auto";
  cli::PrecisionOptions precision;
  models::SamplingOptions options{.max_new_tokens = 400, .temperature = 0.8, .top_k = 200, .seed = 1337};
  CLI::App app{"Continues a prompt with a model of train_gpt, or a byte-level one in Hugging Face's files."};
  app.add_option(
         "--model", path,
         "Output folder of train_gpt, a checkpoint, or a folder with config.json and model.safetensors")
      ->required();
  app.add_option("--prompt", prompt)->capture_default_str();
  app.add_option("--tokens", options.max_new_tokens, "Tokens to generate")->capture_default_str();
  app.add_option("--temperature", options.temperature, "0: always the most likely token")
      ->capture_default_str();
  app.add_option("--top-k", options.top_k, "Sample among this many; 0: all")->capture_default_str();
  app.add_option("--top-p", options.top_p, "Sample among the most likely that make up this probability")
      ->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  cli::add_device_option(&app, device);
  cli::add_precision_options(&app, precision);
  return cli::run_program(app, argc, argv, [&] {
    const auto model = models::load_language_model(model_folder(path));
    model->to(cli::device_of(device));
    cli::set_up_precision(*model, precision);
    const Autocast autocast(precision.dtype());
    const data::ByteTokenizer tokenizer;
    ERGON_CHECK(model->vocab_size() == tokenizer.vocab_size(),
                "{} has a vocabulary of {}, the byte tokenizer one of {}", path, model->vocab_size(),
                tokenizer.vocab_size());
    std::cout << prompt << std::flush;
    Speed speed;
    models::generate(*model, models::as_prompt(tokenizer.encode(prompt)), options, [&](std::int64_t token) {
      speed.count();
      const auto byte = static_cast<std::int32_t>(token);
      std::cout << tokenizer.decode(std::span(&byte, 1)) << std::flush;
      return true;
    });
    std::cout << std::endl;
    log().info("{}", speed.report());
  });
}
