#pragma once

// What the trainer programs share: common options, the configuration file, errors as one line, the closing
// summary.

#include <functional>
#include <string>

#include <CLI/CLI.hpp>

#include "models/nn/module.h"
#include "models/trainer/trainer.h"
#include "optim/adamw.h"

namespace ergon::cli {

// Of the computation.
struct PrecisionOptions {
  std::string name = "fp32";  // or bf16, fp16, auto, auto-fp16
  std::string keep_fp32;      // patterns of modules' names, for nn::set_precision

  DType dtype() const;
};

struct CommonOptions {
  trainer::TrainerOptions trainer{.output_dir = "out"};
  std::uint64_t seed = 1337;
  std::string device = "auto";
  PrecisionOptions precision;
  std::string parameters = "fp32";  // what the model keeps: or bf16, fp16
  std::string states = "fp32";      // of the optimiser: or bf16, 8bit
  bool stochastic_rounding = false;
  std::string schedule = "cosine";
  double lr = 1e-3, min_lr = 0;
  std::int64_t warmup = 0;
  double beta1 = 0.9, beta2 = 0.99, weight_decay = 0.1;
};

// --output, --steps, --lr, ...; and --config FILE, a TOML file with the same names.
void add_common_options(CLI::App& app, CommonOptions& options);

// step → learning rate, as --schedule, --lr, --min-lr and --warmup say. Throws Error if they do not fit
// together.
std::function<double(std::int64_t)> schedule_of(const CommonOptions& options);

// What --device names; of "auto" the first CUDA device where there is one, else the CPU. Throws Error for a
// device that is not there.
Device device_of(const std::string& name);

// Adds --device.
void add_device_option(CLI::App* app, std::string& device);

// What a trainer program does with its options before it starts: --precision becomes the trainer's, and the
// model's parameters what --parameters says. Returns the optimiser's options. Throws Error for options that
// do not go together.
optim::AdamWOptions set_up_training(nn::Module& model, CommonOptions& options);

// Adds --precision and --keep-fp32; the trainers' take auto too.
void add_precision_options(CLI::App* app, PrecisionOptions& options, bool trains = false);

// Does what --keep-fp32 says. Throws Error listing the modules' names if a pattern finds none.
// Returns "device cuda:0 (NVIDIA A100-SXM4-80GB), bf16 (fp32 in transformer.ln_f)": the end of the line that
// a program prints before it starts.
std::string set_up_precision(nn::Module& model, const PrecisionOptions& options);

// Where the results lie, speed and memory of `device`, on standard output.
void print_summary(const trainer::TrainerResult& result, const std::string& sample_name, Device device);

// Parses the command line and calls `run`. Errors become one line on standard error and exit code 1 (2: wrong
// usage).
int run_program(CLI::App& app, int argc, char** argv, const std::function<void()>& run);

// Every option that decides what is computed, by name: stored with checkpoints, compared on resuming.
nlohmann::json run_config(const CLI::App& app);

}  // namespace ergon::cli
