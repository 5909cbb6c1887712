// Training steps of a residual network on random images: losses, milliseconds a step, images a second.
//
//   resnet_bench --depth 8 --width 16 --batch 128 --steps 20 --dir /tmp/resnet [--save]
//
// --save writes the initial weights and the images to --dir, for tests/peers/resnet_peer.py; without it they
// are read from there. The last line on standard output is one JSON object.

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <iostream>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "core/autograd.h"
#include "models/io/safetensors.h"
#include "models/vision/resnet.h"
#include "ops/cross_entropy.h"
#include "optim/adamw.h"
#include "tests/bench/peak_memory.h"

using namespace ergon;

namespace {

// Without the first step, which warms up.
double median_of(std::vector<double> values) {
  if (values.size() > 2) values.erase(values.begin());
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  models::ResNetConfig config;
  std::string dir;
  std::int64_t batch = 128, steps = 20;
  bool save = false;
  CLI::App app{"Residual network training benchmark"};
  app.add_option("--depth", config.depth);
  app.add_option("--width", config.width);
  app.add_option("--batch", batch);
  app.add_option("--steps", steps);
  app.add_option("--dir", dir)->required();
  app.add_flag("--save", save);
  CLI11_PARSE(app, argc, argv);

  manual_seed(1337);
  models::ResNet model(config);
  const std::string weight_file = dir + "/model.safetensors", data_file = dir + "/data.safetensors";
  if (save) {
    std::filesystem::create_directories(dir);
    io::write_safetensors(weight_file, model.state_dict());
    io::write_safetensors(data_file, {{"images", randn({steps, batch, config.in_channels, 28, 28})},
                                      {"targets", randint(0, config.num_classes, {steps, batch})}});
    return 0;
  }
  model.load_state_dict(io::read_safetensors(weight_file));
  Tensor images, targets;  // (steps, batch, channels, 28, 28), (steps, batch)
  for (const auto& [name, tensor] : io::read_safetensors(data_file))
    (name == "images" ? images : targets) = tensor;

  optim::AdamW optimizer(optim::decay_groups(model.named_parameters(), 0.05), {.lr = 1e-3, .beta2 = 0.99});
  std::vector<double> losses, milliseconds, cpu_milliseconds;
  for (std::int64_t step = 0; step < std::min(steps, images.size(0)); ++step) {
    const auto start = std::chrono::steady_clock::now();
    const std::clock_t cpu_start = std::clock();
    const Tensor loss = ops::cross_entropy(model(images.select(0, step)), targets.select(0, step));
    loss.backward();
    optimizer.step();
    optimizer.zero_grad();
    losses.push_back(loss.item<double>());
    milliseconds.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    cpu_milliseconds.push_back(1e3 * static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC);
  }
  const double median = median_of(milliseconds);
  const nlohmann::json report{{"ms_per_step", median},
                              {"cpu_ms_per_step", median_of(cpu_milliseconds)},
                              {"images_per_second", 1e3 * static_cast<double>(batch) / median},
                              {"peak_rss_mib", bench::peak_rss_mib()},
                              {"losses", losses}};
  std::cout << report.dump() << '\n';
}
