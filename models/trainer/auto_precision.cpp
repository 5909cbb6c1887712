#include "models/trainer/auto_precision.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace ergon::trainer {
namespace {

constexpr double kKeep = 0.98;             // of the loss's moving average, a step
constexpr std::int64_t kLeastLosses = 20;  // before a loss can be a spike

bool is_finite(const ops::NumericsSummary& s) { return s.infinite == 0 && s.nan == 0; }

bool is_inside(const std::string& name, const std::string& of) {
  return name != of && (of.empty() || name.starts_with(of + "."));
}

// The module whose result is the first to be infinite or NaN: none inside it is. Modules come in their order
// of registration, each before those inside it.
const ModuleNumerics* first_overflow(const std::vector<ModuleNumerics>& modules) {
  for (const ModuleNumerics& m : modules) {
    const bool inside = std::any_of(modules.begin(), modules.end(), [&](const ModuleNumerics& other) {
      return is_inside(other.name, m.name) && !is_finite(other.output);
    });
    if (!is_finite(m.output) && !inside) return &m;
  }
  return nullptr;
}

// The share of a gradient that fp16 loses; all of it where nothing but zeros arrived.
double lost(const ops::NumericsSummary& gradient) { return gradient.amax == 0 ? 1 : gradient.underflow; }

}  // namespace

AutoPrecision::AutoPrecision(nn::Module& model, DType start, const AutoPrecisionOptions& options)
    : model_(model), options_(options), dtype_(start) {
  ERGON_CHECK(is_half(start), "[AutoPrecision] starts in {}: expected f16 or bf16", name_of(start));
  ERGON_CHECK(options.watch_interval >= 1, "[AutoPrecision] watch_interval is {}: expected 1 or more",
              options.watch_interval);
  ERGON_CHECK(options.underflow_reports >= 1 && options.most_skips >= 1,
              "[AutoPrecision] underflow_reports is {}, most_skips {}: expected 1 or more",
              options.underflow_reports, options.most_skips);
  ERGON_CHECK(options.underflow_limit > 0 && options.spike_factor > 1,
              "[AutoPrecision] underflow_limit is {}, spike_factor {}: expected numbers above 0 and above 1",
              options.underflow_limit, options.spike_factor);
}

bool AutoPrecision::wants_numerics(std::int64_t step) const {
  return watch_next_ || (dtype_ == DType::f16 && step % options_.watch_interval == 0);
}

std::vector<PrecisionDecision> AutoPrecision::after_step(const StepReport& report) {
  Decisions decisions;
  watch_next_ = false;
  if (dtype_ == DType::f16) check_overflow(report, decisions);
  if (dtype_ == DType::f16) check_underflow(report, decisions);
  check_spike(report, decisions);
  return decisions;
}

void AutoPrecision::leave_fp16(std::string reason, Decisions& decisions) {
  dtype_ = DType::bf16;
  decisions.push_back({.action = "switch to bf16", .module = "", .reason = std::move(reason)});
}

void AutoPrecision::raise(const std::string& module, std::string reason, Decisions& decisions) {
  module_named(module).precision(DType::f32);
  raised_.push_back(module);
  watch_next_ = true;  // what comes after it may overflow too
  decisions.push_back({.action = "raise to fp32", .module = module, .reason = std::move(reason)});
}

void AutoPrecision::check_overflow(const StepReport& report, Decisions& decisions) {
  const std::int64_t skips = report.scaler ? report.scaler->consecutive_skips : 0;
  if (skips > 0 || !std::isfinite(report.loss)) watch_next_ = true;
  if (report.numerics == nullptr) return;
  if (const ModuleNumerics* first = first_overflow(*report.numerics)) {
    const std::string found =
        fmt::format("{} infinite and {} NaN results in fp16, whose largest number is 65504",
                    first->output.infinite, first->output.nan);
    if (first->name.empty()) {
      leave_fp16(found + ", outside of every layer", decisions);
    } else if (module_named(first->name).precision() != DType::f32) {
      raise(first->name, found, decisions);
    }
  } else if (skips >= options_.most_skips) {
    leave_fp16(
        fmt::format("{} steps in a row were skipped, down to a loss scale of {}, though all activations "
                    "are finite",
                    skips, report.scaler->scale),
        decisions);
  }
}

void AutoPrecision::check_underflow(const StepReport& report, Decisions& decisions) {
  const bool skipped = report.scaler && report.scaler->consecutive_skips > 0;
  if (report.numerics == nullptr || skipped) return;
  double sum = 0, worst = -1;
  std::int64_t count = 0;
  std::string worst_name;
  for (const ModuleNumerics& m : *report.numerics) {
    if (m.name.empty() || module_named(m.name).precision() == DType::f32) continue;
    sum += lost(m.gradient);
    ++count;
    if (lost(m.gradient) > worst) {
      worst = lost(m.gradient);
      worst_name = m.name;
    }
  }
  const double mean = count > 0 ? sum / static_cast<double>(count) : 0;
  underflow_reports_ = mean > options_.underflow_limit ? underflow_reports_ + 1 : 0;
  if (underflow_reports_ < options_.underflow_reports) return;
  leave_fp16(
      fmt::format("{:.0f} % of the gradients underflow fp16 ({:.0f} % in {}), more than {:.0f} % in {} looks "
                  "in a row",
                  100 * mean, 100 * worst, worst_name, 100 * options_.underflow_limit, underflow_reports_),
      decisions);
}

void AutoPrecision::check_spike(const StepReport& report, Decisions& decisions) {
  if (!std::isfinite(report.loss)) return;
  if (averaged_ >= kLeastLosses && report.loss > options_.spike_factor * average_loss_) {
    watch_next_ = true;
    decisions.push_back(
        {.action = "look at the numerics",
         .module = "",
         .reason = fmt::format("the loss is {:.4g}, its average was {:.4g}", report.loss, average_loss_)});
  }
  average_loss_ = averaged_ == 0 ? report.loss : kKeep * average_loss_ + (1 - kKeep) * report.loss;
  ++averaged_;
}

nn::Module& AutoPrecision::module_named(const std::string& name) const {
  for (const auto& [known, module] : model_.named_modules()) {
    if (known == name) return *module;
  }
  ERGON_FAIL("[AutoPrecision] the model has no module named {}", name);
}

nlohmann::json AutoPrecision::state() const {
  return {{"dtype", name_of(dtype_)},      {"raised", raised_},
          {"watch_next", watch_next_},     {"underflow_reports", underflow_reports_},
          {"average_loss", average_loss_}, {"averaged", averaged_}};
}

void AutoPrecision::load_state(const nlohmann::json& state) {
  raised_ = state.at("raised");
  for (const std::string& name : raised_) module_named(name).precision(DType::f32);
  dtype_ = parse_dtype(state.at("dtype").get<std::string>());
  watch_next_ = state.at("watch_next");
  underflow_reports_ = state.at("underflow_reports");
  average_loss_ = state.at("average_loss");
  averaged_ = state.at("averaged");
}

}  // namespace ergon::trainer
