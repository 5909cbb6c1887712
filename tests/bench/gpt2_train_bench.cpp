// Training steps of a GPT-2 on random tokens: losses, milliseconds a step, tokens a second, peak memory.
//
//   gpt2_train_bench --size 124M --batch 4 --seqlen 256 --steps 20 --dir /tmp/gpt2 [--precision bf16]
//   [--save]
//   [--dtype bf16 [--master-weights | --stochastic-rounding]] [--states bf16 | u8] [--loss-scaling]
//
// --save writes the initial weights and the tokens to --dir, for tests/peers/gpt2_peer.py; without it they
// are read from there. --dtype is the parameters', which an Autocast scope (--precision) leaves alone; with
// bf16 parameters give --precision none. The last line on standard output is one JSON object.

#include <chrono>
#include <iostream>
#include <optional>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "core/autocast.h"
#include "core/autograd.h"
#include "models/io/safetensors.h"
#include "models/language/gpt2.h"
#include "optim/adamw.h"
#include "optim/clip_grad.h"
#include "optim/grad_scaler.h"
#include "tests/bench/peak_memory.h"

using namespace ergon;

namespace {

models::GPT2Config config_of(const std::string& size) {
  if (size != "1M") return models::GPT2Config::named(size);
  return {.vocab_size = 256, .context_length = 256, .hidden_size = 128, .num_layers = 4, .num_heads = 4};
}

}  // namespace

int main(int argc, char** argv) {
  std::string size = "124M", dir, precision = "f32";
  std::int64_t batch = 4, seqlen = 256, steps = 20;
  std::string dtype = "f32", states = "f32";
  bool save = false, master_weights = false, stochastic_rounding = false, loss_scaling = false;
  CLI::App app{"GPT-2 training benchmark"};
  app.add_option("--size", size, "124M, 355M, ... or 1M (4 layers, 128 wide)");
  app.add_option("--batch", batch);
  app.add_option("--seqlen", seqlen);
  app.add_option("--steps", steps);
  app.add_option("--dir", dir)->required();
  app.add_option("--precision", precision, "f32, bf16 or f16, of an Autocast scope; none: no scope");
  app.add_option("--dtype", dtype, "f32, bf16 or f16: of the parameters");
  app.add_option("--states", states, "f32, bf16 or u8 (8-bit): of the optimiser");
  app.add_flag("--master-weights", master_weights);
  app.add_flag("--stochastic-rounding", stochastic_rounding);
  app.add_flag("--loss-scaling", loss_scaling);
  app.add_flag("--save", save);
  CLI11_PARSE(app, argc, argv);

  manual_seed(1337);
  models::GPT2 model(config_of(size));
  const std::string token_file = dir + "/tokens.safetensors";
  if (save) {
    models::save_language_model(model, dir);
    io::write_safetensors(token_file,
                          {{"tokens", randint(0, model.vocab_size(), {steps, batch, seqlen + 1})}});
    return 0;
  }
  model.load_state_dict(models::load_language_model(dir)->state_dict());
  const Tensor tokens = io::read_safetensors(token_file).at(0).second;  // (steps, batch, seqlen + 1)

  model.to(parse_dtype(dtype));
  optim::AdamW optimizer(optim::decay_groups(model.named_parameters(), 0.1),
                         {.lr = 3e-4,
                          .beta2 = 0.95,
                          .master_weights = master_weights,
                          .stochastic_rounding = stochastic_rounding,
                          .state_dtype = parse_dtype(states)});
  optim::GradScaler scaler;
  empty_cache();
  reset_peak_memory();  // loading does not count
  bench::reset_peak_rss();
  std::vector<double> losses, milliseconds;
  for (std::int64_t step = 0; step < std::min(steps, tokens.size(0)); ++step) {
    const auto start = std::chrono::steady_clock::now();
    const Tensor window = tokens.select(0, step);
    std::optional<Autocast> autocast;
    if (precision != "none") autocast.emplace(parse_dtype(precision));
    const Tensor loss = model.loss(window.slice(1, 0, seqlen), window.slice(1, 1, seqlen + 1));
    (loss_scaling ? scaler.scale(loss) : loss).backward();
    autocast.reset();
    if (loss_scaling) {
      scaler.step(optimizer, {.max_norm = 1.0});
      scaler.update();
    } else {
      const double norm = optim::grad_norm(optimizer.parameters());
      optimizer.step({.grad_scale = optim::clip_scale(norm, 1.0)});
    }
    optimizer.zero_grad();
    losses.push_back(loss.item<double>());
    milliseconds.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::vector<double> sorted(milliseconds.begin() + (milliseconds.size() > 2 ? 1 : 0), milliseconds.end());
  std::sort(sorted.begin(), sorted.end());
  const double median = sorted[sorted.size() / 2];
  const nlohmann::json report{{"ms_per_step", median},
                              {"tokens_per_second", 1e3 * static_cast<double>(batch * seqlen) / median},
                              {"peak_rss_mib", bench::peak_rss_mib()},
                              {"peak_tensor_mib", static_cast<double>(memory_stats().peak) / (1 << 20)},
                              {"losses", losses}};
  std::cout << report.dump() << '\n';
}
