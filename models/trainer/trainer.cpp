#include "models/trainer/trainer.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include <unistd.h>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/log.h"
#include "models/io/atomic_file.h"
#include "models/io/checkpoint.h"
#include "models/io/json.h"
#include "models/trainer/interrupt.h"
#include "models/trainer/loss_plot.h"
#include "models/trainer/metrics_log.h"
#include "models/trainer/numerics.h"
#include "optim/clip_grad.h"

namespace ergon::trainer {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// "42 s", "3:05 min", "2:10 h".
std::string format_duration(double seconds) {
  const auto total = static_cast<std::int64_t>(std::llround(std::max(seconds, 0.0)));
  if (total < 60) return fmt::format("{} s", total);
  if (total < 3600) return fmt::format("{}:{:02} min", total / 60, total % 60);
  return fmt::format("{}:{:02} h", total / 3600, total / 60 % 60);
}

// Where fp16 gives up.
constexpr double kLeastScale = 0x1p-14;
constexpr std::int64_t kMostSkips = 40;

json to_json(const optim::GradScalerState& s) {
  return {{"scale", s.scale},
          {"good_steps", s.good_steps},
          {"skipped_steps", s.skipped_steps},
          {"consecutive_skips", s.consecutive_skips}};
}

optim::GradScalerState scaler_state(const json& j) {
  return {j.at("scale"), j.at("good_steps"), j.at("skipped_steps"), j.at("consecutive_skips")};
}

json to_json(PhiloxState state) { return {{"seed", state.seed}, {"offset", state.offset}}; }

// A number that JSON can hold: NaN and infinity become null.
json finite_or_null(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

class Run {
 public:
  Run(Task& task, optim::Optimizer& optimizer, const std::function<double(std::int64_t)>& learning_rate,
      const TrainerOptions& options)
      : task_(task),
        optimizer_(optimizer),
        learning_rate_(learning_rate),
        options_(options),
        numerics_(task.model(), is_half(options.precision) ? options.precision : DType::f16),
        precision_(options.precision) {
    check_options();
    if (options_.auto_precision) auto_precision_.emplace(task.model(), precision_, *options_.auto_precision);
    if (precision_ == DType::f16) scaler_.emplace();
    make_output_folder(options_.output_dir);
    resume_if_asked();
    io::write_json(options_.output_dir + "/run.json", options_.run_config);
    metrics_ =
        std::make_unique<MetricsLog>(options_.output_dir + "/metrics.jsonl", options_.resume ? step_ : -1);
  }

  TrainerResult train() {
    const InterruptGuard interrupt;
    task_.model().train();
    interval_start_ = Clock::now();
    while (step_ < options_.max_steps && !interrupt.requested()) {
      make_step();
      const bool last = step_ == options_.max_steps;
      if (step_ % options_.log_interval == 0 || last) log_step();
      if (last || is_due(options_.eval_interval)) evaluate();
      if (is_due(options_.checkpoint_interval) && !last) save();
    }
    result_.interrupted = step_ < options_.max_steps;
    if (saved_step_ != step_) save();
    write_plot();
    result_.steps = step_;
    result_.train_loss = loss_;
    result_.skipped_steps = scaling_.skipped_steps;
    std::sort(speeds_.begin(), speeds_.end());
    if (!speeds_.empty()) result_.samples_per_second = speeds_[speeds_.size() / 2];
    return result_;
  }

 private:
  std::string checkpoint_root() const { return options_.output_dir + "/checkpoints"; }
  bool is_due(std::int64_t interval) const { return interval > 0 && step_ % interval == 0; }

  void check_options() const {
    const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
      ERGON_CHECK(value >= least, "[trainer] {} is {}: expected {} or more", name, value, least);
    };
    at_least("max_steps", options_.max_steps, 0);
    at_least("gradient_accumulation", options_.gradient_accumulation, 1);
    at_least("log_interval", options_.log_interval, 1);
    at_least("eval_interval", options_.eval_interval, 0);
    at_least("checkpoint_interval", options_.checkpoint_interval, 0);
    at_least("keep_checkpoints", options_.keep_checkpoints, 1);
    at_least("numerics_interval", options_.numerics_interval, 0);
    ERGON_CHECK(options_.clip_norm >= 0, "[trainer] clip_norm is {}: expected 0 or more", options_.clip_norm);
  }

  void resume_if_asked() {
    const std::optional<std::filesystem::path> newest = io::latest_checkpoint(checkpoint_root());
    if (!newest) return;
    const std::string latest = newest->string();
    ERGON_CHECK(
        options_.resume,
        "{} holds a checkpoint already ({}): pass --resume to go on from it, or choose another output folder",
        options_.output_dir, latest);
    const io::Checkpoint checkpoint = io::load_checkpoint(latest);
    check_run_config(checkpoint.trainer_state.at("run_config"), latest);
    task_.model().load_state_dict(checkpoint.model);
    optimizer_.load_state_dict(checkpoint.optimizer);
    const json& generator = checkpoint.trainer_state.at("generator");
    default_generator().set_state({generator.at("seed"), generator.at("offset")});
    task_.set_data_state(checkpoint.trainer_state.at("data"));
    load_precision(checkpoint.trainer_state);
    step_ = saved_step_ = checkpoint.trainer_state.at("step");
    result_.checkpoint = latest;
    log().info("resumed from {} at step {}", latest, step_);
  }

  void load_precision(const json& state) {
    if (auto_precision_ && state.contains("auto_precision")) {
      auto_precision_->load_state(state["auto_precision"]);
      set_precision(auto_precision_->dtype());
    }
    if (state.contains("loss_scaling")) scaling_ = scaler_state(state["loss_scaling"]);
    if (scaler_ && state.contains("loss_scaling")) scaler_->load_state(scaling_);
  }

  void set_precision(DType dtype) {
    precision_ = dtype;
    if (precision_ != DType::f16) scaler_.reset();
  }

  void check_run_config(const json& saved, const std::string& path) const {
    for (const auto& [key, value] : options_.run_config.items()) {
      const json before = saved.contains(key) ? saved[key] : json();
      ERGON_CHECK(before == value, "cannot resume from {}: {} was {} there, is {} now", path, key,
                  before.dump(), value.dump());
    }
  }

  void make_step() {
    const double rate = learning_rate_(step_);
    optimizer_.set_learning_rate(rate);
    const bool reported = options_.numerics_interval > 0 && (step_ + 1) % options_.numerics_interval == 0;
    const bool watched = reported || (auto_precision_ && auto_precision_->wants_numerics(step_ + 1));
    if (watched) numerics_.watch();
    std::vector<Tensor> losses;  // read once all work of the step is on the device's stream
    {
      const Autocast autocast(precision_);  // over all micro-batches: weights are converted once
      for (std::int64_t i = 0; i < options_.gradient_accumulation; ++i) {
        const Tensor loss = task_.next_loss();
        const Tensor scaled = scaler_ ? scaler_->scale(loss) : loss;
        scaled.backward(full(scaled.shape(), 1.0 / static_cast<double>(options_.gradient_accumulation),
                             scaled.options()));
        losses.push_back(loss.detach());
      }
    }
    std::vector<ModuleNumerics> numerics;
    if (watched) numerics = numerics_.take();
    if (watched) report_numerics(numerics, reported && !options_.quiet);
    loss_ = 0;
    for (const Tensor& loss : losses) {
      loss_ += loss.item<double>() / static_cast<double>(options_.gradient_accumulation);
    }
    update_parameters();
    optimizer_.zero_grad();
    ++step_;
    rate_ = rate;
    if (auto_precision_) adapt_precision(watched ? &numerics : nullptr);
  }

  void update_parameters() {
    if (!scaler_) {
      grad_norm_ = optim::grad_norm(optimizer_.parameters());
      check_finite("loss", loss_);
      check_finite("gradient norm", grad_norm_);
      optimizer_.step({.grad_scale = optim::clip_scale(grad_norm_, options_.clip_norm)});
      return;
    }
    grad_norm_ = scaler_->step(optimizer_, {.max_norm = options_.clip_norm}).item<double>();
    scaler_->update();
    scaling_ = scaler_->state();
    if (scaling_.consecutive_skips == 0) return check_finite("loss", loss_);
    log().info("step {}: inf or NaN in the gradients, skipped; the loss scale is {} now", step_ + 1,
               scaling_.scale);
    ERGON_CHECK(
        scaling_.consecutive_skips < kMostSkips && scaling_.scale >= kLeastScale,
        "fp16 does not hold this run's numbers: {} steps in a row were skipped up to step {}, the loss "
        "scale fell to {}; {}; bf16 has the range of fp32 (--precision bf16 or auto)",
        scaling_.consecutive_skips, step_ + 1, scaling_.scale, describe_newest_checkpoint());
  }

  void adapt_precision(const std::vector<ModuleNumerics>* numerics) {
    StepReport report{.step = step_, .loss = loss_, .numerics = numerics};
    if (scaler_) report.scaler = scaling_;
    for (const PrecisionDecision& decision : auto_precision_->after_step(report)) {
      const std::string what =
          decision.module.empty() ? decision.action : decision.module + ": " + decision.action;
      log().warn("step {}: precision: {}, because {}", step_, what, decision.reason);
      metrics_->write({{"step", step_},
                       {"precision_decision", decision.action},
                       {"module", decision.module},
                       {"reason", decision.reason}});
    }
    set_precision(auto_precision_->dtype());
  }

  void report_numerics(const std::vector<ModuleNumerics>& modules, bool print) {
    metrics_->write({{"step", step_ + 1}, {"numerics", to_json(modules, numerics_.target())}});
    if (!print) return;
    fmt::print("step {}: {}", step_ + 1, describe(modules, numerics_.target()));
    std::fflush(stdout);
  }

  std::string describe_newest_checkpoint() const {
    return result_.checkpoint.empty() ? "no checkpoint was written yet"
                                      : fmt::format("the newest checkpoint is {}", result_.checkpoint);
  }

  void check_finite(const char* what, double value) const {
    ERGON_CHECK(std::isfinite(value), "{} is {} at step {}: expected a finite number; {}", what, value,
                step_ + 1, describe_newest_checkpoint());
  }

  void log_step() {
    const double elapsed = seconds_since(interval_start_);
    const auto steps = static_cast<double>(step_ - interval_step_);
    const double per_step = elapsed / steps;
    const double speed =
        steps * static_cast<double>(task_.samples_per_micro_batch() * options_.gradient_accumulation)
        / elapsed;
    speeds_.push_back(speed);
    json entry{{"step", step_},
               {"loss", finite_or_null(loss_)},
               {"lr", rate_},
               {"grad_norm", finite_or_null(grad_norm_)},
               {task_.sample_name() + "_per_second", speed}};
    if (scaler_) {
      entry["loss_scale"] = scaling_.scale;
      entry["skipped_steps"] = scaling_.skipped_steps;
    }
    metrics_->write(entry);
    if (!options_.quiet) {
      const double left = per_step * static_cast<double>(options_.max_steps - step_);
      fmt::print("step {:>{}}/{} | loss {:.4f} | lr {:.2e} | grad norm {:.3f} | {:.0f} {}/s | {} left\n",
                 step_, fmt::formatted_size("{}", options_.max_steps), options_.max_steps, loss_, rate_,
                 grad_norm_, speed, task_.sample_name(), format_duration(left));
      std::fflush(stdout);
    }
    restart_interval();
  }

  // Evaluations and checkpoints do not count as training time.
  void restart_interval() {
    interval_start_ = Clock::now();
    interval_step_ = step_;
  }

  void evaluate() {
    const auto pause = Clock::now();
    {
      const NoGradGuard no_grad;
      const Autocast autocast(precision_);
      task_.model().eval();
      result_.evaluation = task_.evaluate();
      task_.model().train();
    }
    json entry{{"step", step_}};
    std::string line;
    for (const auto& [name, value] : result_.evaluation) {
      entry[name] = finite_or_null(value);
      line += fmt::format(" | {} {:.4f}", name, value);
    }
    metrics_->write(entry);
    if (!options_.quiet)
      fmt::print("eval {:>{}}/{}{}\n", step_, fmt::formatted_size("{}", options_.max_steps),
                 options_.max_steps, line);
    std::fflush(stdout);
    interval_start_ += Clock::now() - pause;
  }

  void save() {
    const auto pause = Clock::now();
    io::CheckpointParts parts;
    parts.model = task_.model().state_dict();
    parts.config = task_.model_config();
    parts.optimizer = optimizer_.state_dict();
    parts.trainer_state = {{"step", step_},
                           {"generator", to_json(default_generator().state())},
                           {"data", task_.data_state()},
                           {"run_config", options_.run_config}};
    if (options_.precision == DType::f16) parts.trainer_state["loss_scaling"] = to_json(scaling_);
    if (auto_precision_) parts.trainer_state["auto_precision"] = auto_precision_->state();
    result_.checkpoint =
        io::save_checkpoint(checkpoint_root(), step_, parts, static_cast<int>(options_.keep_checkpoints))
            .string();
    saved_step_ = step_;
    interval_start_ += Clock::now() - pause;
  }

  void write_plot() {
    Curve training{"training", "#1f77b4", {}}, validation{"validation", "#d62728", {}};
    const std::string eval_name = result_.evaluation.empty() ? "" : result_.evaluation.front().first;
    for (const json& entry : metrics_->entries()) {
      const auto add = [&](Curve& curve, const std::string& key) {
        if (entry.contains(key) && entry[key].is_number())
          curve.points.emplace_back(entry["step"], entry[key]);
      };
      add(training, "loss");
      add(validation, eval_name);
    }
    result_.plot = options_.output_dir + "/loss.svg";
    io::write_file(result_.plot, plot_svg("Loss", "loss", {training, validation}));
  }

  Task& task_;
  optim::Optimizer& optimizer_;
  const std::function<double(std::int64_t)>& learning_rate_;
  const TrainerOptions& options_;
  NumericsMonitor numerics_;
  DType precision_;                          // of the next step
  std::optional<optim::GradScaler> scaler_;  // in fp16
  optim::GradScalerState scaling_;           // after the last step in fp16
  std::optional<AutoPrecision> auto_precision_;
  std::unique_ptr<MetricsLog> metrics_;
  TrainerResult result_;
  std::int64_t step_ = 0;  // steps made
  std::int64_t saved_step_ = -1;
  double loss_ = 0, rate_ = 0, grad_norm_ = 0;  // of the last step
  Clock::time_point interval_start_;            // since the last progress line, pauses left out
  std::int64_t interval_step_ = 0;
  std::vector<double> speeds_;
};

}  // namespace

void make_output_folder(const std::string& path) {
  ERGON_CHECK(!path.empty(), "[trainer] no output folder given");
  std::error_code error;
  std::filesystem::create_directories(path, error);
  ERGON_CHECK(!error, "cannot make the output folder {}: {}", path, error.message());
  ERGON_CHECK(access(path.c_str(), W_OK) == 0, "cannot write to the output folder {}: {}", path,
              std::strerror(errno));
}

TrainerResult train(Task& task, optim::Optimizer& optimizer,
                    const std::function<double(std::int64_t)>& learning_rate, const TrainerOptions& options) {
  return Run(task, optimizer, learning_rate, options).train();
}

}  // namespace ergon::trainer
