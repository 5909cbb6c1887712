// One step of the optimisers, and the norm of the gradients, over the parameters of a GPT-2: bytes moved a
// second, against memcpy of the same number of bytes on the same threads in the same run.
//
//   optim_bench --size 124M
//
// The last line on standard output is one JSON object, for tests/peers/optim_peer.py.

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "core/autograd.h"
#include "models/language/gpt2.h"
#include "optim/adamw.h"
#include "optim/clip_grad.h"
#include "optim/grad_scaler.h"
#include "optim/sgd.h"
#include "tests/bench/bandwidth.h"

using namespace ergon;

namespace {

models::GPT2Config config_of(const std::string& size) {
  if (size != "1M") return models::GPT2Config::named(size);
  return {.vocab_size = 256, .context_length = 256, .hidden_size = 128, .num_layers = 4, .num_heads = 4};
}

}  // namespace

int main(int argc, char** argv) {
  std::string size = "124M";
  CLI::App app{"Optimiser benchmark"};
  app.add_option("--size", size, "124M, 355M, ... or 1M (4 layers, 128 wide)");
  CLI11_PARSE(app, argc, argv);

  models::GPT2 model(config_of(size));
  const NamedTensors parameters = model.named_parameters();
  for (auto [name, parameter] : parameters) {
    parameter.set_grad(full(parameter.shape(), 1e-3));
  }
  const std::int64_t bytes = model.num_parameters() * size_of(DType::f32);
  std::printf("%s, %d threads; medians of 30\n", size.c_str(), num_threads());
  nlohmann::json seconds;
  const auto report = [&](const std::string& name, std::int64_t passes, const std::function<void()>& f) {
    seconds[name] = bench::report(name, passes * bytes, f);
  };
  optim::AdamW adamw(optim::decay_groups(parameters, 0.1), {.lr = 1e-6});
  report("adamw", 7,
         [&] { adamw.step(); });  // reads parameter, gradient and two states, writes all but the gradient
  optim::SGD sgd(parameters, {.lr = 1e-6, .momentum = 0.9});
  report("sgd_momentum", 5, [&] { sgd.step(); });
  report("grad_norm", 1, [&] { optim::grad_norm(adamw.parameters()); });
  // What a training step does after its backward, without and with loss scaling.
  report("adamw_clipped", 8,
         [&] { adamw.step({.grad_scale = optim::clip_scale(optim::grad_norm(adamw.parameters()), 1.0)}); });
  optim::GradScaler scaler;
  report("adamw_scaled", 8, [&] {
    scaler.step(adamw, {.max_norm = 1.0});
    scaler.update();
  });
  optim::AdamW reduced(optim::decay_groups(parameters, 0.1), {.lr = 1e-6, .state_dtype = DType::u8});
  report("adamw_8bit", 4, [&] { reduced.step(); });
  std::puts(seconds.dump().c_str());
}
