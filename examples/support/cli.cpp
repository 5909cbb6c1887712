#include "examples/support/cli.h"

#include <algorithm>
#include <array>
#include <iostream>

#include "core/log.h"
#include "models/nn/precision.h"
#include "optim/schedule.h"

namespace ergon::cli {
namespace {

// Options that may change when a run is resumed: how long, how often, where to.
constexpr std::array kFreeOptions{
    "help",          "config",        "output", "resume",           "log-interval",
    "eval-interval", "eval-batches",  "quiet",  "keep-checkpoints", "checkpoint-interval",
    "sample",        "sample-tokens", "data",   "init-from",        "device",
    "numerics-every"};

// A usage error in one line. CLI11 does not name the file of an unknown key, and reports a missing option
// before the misspelt one.
std::string describe(const CLI::App& app, const CLI::ParseError& error) {
  const std::string what = error.what(), unknown_key = "INI was not able to parse ";
  if (what.starts_with(unknown_key))
    return fmt::format("{}: unknown option '{}'", app.get_config_ptr()->as<std::string>(),
                       what.substr(unknown_key.size()));
  const std::vector<std::string> unknown = app.remaining();
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && !unknown.empty())
    return fmt::format("unknown option '{}'; {}", unknown.front(), what);
  return what;
}

}  // namespace

void add_common_options(CLI::App& app, CommonOptions& o) {
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_config("--config", "", "Read options from this TOML file; the command line wins");
  app.get_formatter()->column_width(34);

  auto* run = app.add_option_group("Run");
  run->add_option("-o,--output", o.trainer.output_dir, "Folder for checkpoints, metrics.jsonl and loss.svg")
      ->capture_default_str();
  run->add_option("--steps", o.trainer.max_steps, "Optimiser steps")->capture_default_str();
  run->add_flag("--resume", o.trainer.resume, "Go on from the newest checkpoint in the output folder");
  run->add_option("--seed", o.seed, "The same seed gives the same numbers, bit for bit")
      ->capture_default_str();
  run->add_option("--log-interval", o.trainer.log_interval, "Steps between progress lines")
      ->capture_default_str();
  run->add_option("--eval-interval", o.trainer.eval_interval, "Steps between evaluations; 0: only at the end")
      ->capture_default_str();
  run->add_option("--checkpoint-interval", o.trainer.checkpoint_interval,
                  "Steps between checkpoints; 0: only at the end")
      ->capture_default_str();
  run->add_option("--keep-checkpoints", o.trainer.keep_checkpoints, "Newest checkpoints kept")
      ->capture_default_str();
  run->add_flag("--quiet", o.trainer.quiet, "No progress lines");
  add_device_option(run, o.device);
  add_precision_options(run, o.precision, /*trains=*/true);
  run->add_option("--numerics-every", o.trainer.numerics_interval,
                  "Steps between reports of what half precision loses in every layer; 0: none")
      ->capture_default_str();

  auto* optimiser = app.add_option_group("Optimiser (AdamW)");
  optimiser->add_option("--lr", o.lr, "Highest learning rate")->capture_default_str();
  optimiser->add_option("--min-lr", o.min_lr, "Learning rate at the end")->capture_default_str();
  optimiser->add_option("--warmup", o.warmup, "Steps of linear warm-up")->capture_default_str();
  optimiser
      ->add_option("--schedule", o.schedule,
                   "cosine, linear, wsd (warm-up, stable, decay over the last fifth) or constant")
      ->check(CLI::IsMember({"cosine", "linear", "wsd", "constant"}))
      ->capture_default_str();
  optimiser->add_option("--weight-decay", o.weight_decay, "Of matrices; vectors are not decayed")
      ->capture_default_str();
  optimiser->add_option("--beta1", o.beta1)->capture_default_str();
  optimiser->add_option("--beta2", o.beta2)->capture_default_str();
  optimiser
      ->add_option(
          "--parameters", o.parameters,
          "fp32, bf16 or fp16: what the model keeps. Halves are rounded from fp32 masters, which the "
          "optimiser keeps")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  optimiser->add_flag("--stochastic-rounding", o.stochastic_rounding,
                      "No masters: bf16 parameters are rounded up or down at random");
  optimiser
      ->add_option("--optimizer-states", o.states, "fp32, bf16 or 8bit: of tensors of 4096 elements or more")
      ->check(CLI::IsMember({"fp32", "bf16", "8bit"}))
      ->capture_default_str();
  optimiser->add_option("--clip", o.trainer.clip_norm, "Largest norm of the gradient; 0: no clipping")
      ->capture_default_str();
  optimiser->add_option("--accumulate", o.trainer.gradient_accumulation, "Micro-batches in a step")
      ->capture_default_str();
}

nlohmann::json run_config(const CLI::App& app) {
  nlohmann::json config = nlohmann::json::object();
  for (const CLI::Option* option : app.get_options([](const CLI::Option*) { return true; })) {
    const std::string name = option->get_single_name();
    if (std::find(kFreeOptions.begin(), kFreeOptions.end(), name) != kFreeOptions.end()) continue;
    const std::vector<std::string> values = option->reduced_results();
    config[name] = values.empty() ? option->get_default_str() : values.front();
  }
  for (const CLI::App* group : app.get_subcommands([](const CLI::App*) { return true; }))
    config.update(run_config(*group));
  return config;
}

std::function<double(std::int64_t)> schedule_of(const CommonOptions& o) {
  optim::ScheduleOptions options{
      .lr = o.lr, .min_lr = o.min_lr, .warmup = o.warmup, .steps = o.trainer.max_steps};
  if (o.schedule == "constant") return optim::constant(options);
  if (o.schedule == "linear") return optim::linear(options);
  if (o.schedule == "cosine") return optim::cosine(options);
  options.decay_steps = (o.trainer.max_steps - o.warmup) / 5;
  return optim::warmup_stable_decay(options);
}

Device device_of(const std::string& name) {
  if (name == "auto") return device_count(DeviceType::cuda) > 0 ? Device::cuda() : Device::cpu();
  const Device device = Device::parse(name);
  check_available(device);
  return device;
}

void add_device_option(CLI::App* app, std::string& device) {
  app->add_option("--device", device, "cpu, cuda, cuda:N, or auto: cuda where there is one")
      ->capture_default_str();
}

DType PrecisionOptions::dtype() const {
  if (name == "auto") return trainer::AutoPrecision::kStart;
  return name == "bf16" ? DType::bf16 : name.ends_with("fp16") ? DType::f16 : DType::f32;
}

optim::AdamWOptions set_up_training(nn::Module& model, CommonOptions& o) {
  const bool halves = o.parameters != "fp32";
  ERGON_CHECK(!halves || o.precision.name != "fp32",
              "--parameters {} with --precision fp32: expected bf16, fp16 or auto", o.parameters);
  ERGON_CHECK(!o.stochastic_rounding || o.parameters == "bf16",
              "--stochastic-rounding with --parameters {}: expected bf16", o.parameters);
  o.trainer.precision = o.precision.dtype();
  if (o.precision.name.starts_with("auto")) o.trainer.auto_precision.emplace();
  if (halves) model.to(o.parameters == "bf16" ? DType::bf16 : DType::f16);
  const DType states = o.states == "8bit" ? DType::u8 : o.states == "bf16" ? DType::bf16 : DType::f32;
  return {.lr = o.lr,
          .beta1 = o.beta1,
          .beta2 = o.beta2,
          .master_weights = halves && !o.stochastic_rounding,
          .stochastic_rounding = o.stochastic_rounding,
          .state_dtype = states,
          .seed = o.seed};
}

void add_precision_options(CLI::App* app, PrecisionOptions& options, bool trains) {
  std::vector<std::string> names{"fp32", "bf16", "fp16"};
  std::string help = "fp32, bf16 or fp16: of matrix products and convolutions";
  if (trains) {
    names.insert(names.end(), {"auto", "auto-fp16"});
    help += "; auto (from bf16) or auto-fp16 (from fp16) change it where the numbers do not fit";
  }
  app->add_option("--precision", options.name, help)->check(CLI::IsMember(names))->capture_default_str();
  app->add_option("--keep-fp32", options.keep_fp32,
                  "Modules that compute in fp32 whatever --precision says: 'ln_f,lm_head,h.*.mlp'");
}

std::string set_up_precision(nn::Module& model, const PrecisionOptions& options) {
  const std::vector<std::string> kept = nn::set_precision(model, options.keep_fp32, DType::f32);
  const Device device = model.device();
  return fmt::format("device {} ({}), {}{}", to_string(device), device_name(device), options.name,
                     kept.empty() ? "" : fmt::format(" (fp32 in {})", fmt::join(kept, ", ")));
}

void print_summary(const trainer::TrainerResult& result, const std::string& sample_name, Device device) {
  std::cout << '\n';
  if (result.interrupted)
    std::cout << "Interrupted at step " << result.steps << "; --resume goes on from there.\n";
  for (const auto& [name, value] : result.evaluation) std::cout << fmt::format("{:<14}{:.4f}\n", name, value);
  if (result.skipped_steps > 0)
    std::cout << fmt::format("{:<14}{} for inf or NaN in fp16\n", "skipped steps", result.skipped_steps);
  if (result.samples_per_second > 0)
    std::cout << fmt::format("{:<14}{:.0f} {}/s\n", "speed", result.samples_per_second, sample_name);
  std::cout << fmt::format("{:<14}{:.0f} MiB of tensors at the peak\n", "memory",
                           static_cast<double>(memory_stats(device).peak) / (1 << 20))
            << fmt::format("{:<14}{}\n", "checkpoint", result.checkpoint)
            << fmt::format("{:<14}{}\n", "plot", result.plot) << std::flush;
}

int run_program(CLI::App& app, int argc, char** argv, const std::function<void()>& run) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error, std::cout, std::cerr);  // --help
    log().error("{}; --help lists the options", describe(app, error));
    return 2;
  } catch (const std::exception& error) {  // CLI11 lets other exceptions out of a damaged configuration file
    log().error("{}; --help lists the options", error.what());
    return 2;
  }
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    std::cout.flush();
    log().error("{}", error.what());
    return 1;
  }
}

}  // namespace ergon::cli
