#include "models/trainer/numerics.h"

#include <algorithm>

#include "core/autograd.h"
#include "core/error.h"

namespace ergon::trainer {

struct NumericsSlots {
  ops::NumericsCounter outputs, gradients;
  std::vector<bool> seen;
};

namespace {

constexpr std::size_t kMostListed = 5;  // modules in a report for people

bool is_bad(const ops::NumericsSummary& s) { return s.infinite > 0 || s.nan > 0 || s.overflow > 0; }

nlohmann::json to_json(const ops::NumericsSummary& s) {
  return {{"amax", s.amax},
          {"underflow", s.underflow},
          {"overflow", s.overflow},
          {"inf", s.infinite},
          {"nan", s.nan}};
}

std::string line(const ModuleNumerics& m) {
  const auto part = [](const char* name, const ops::NumericsSummary& s) {
    std::string text = fmt::format("{} up to {:.2e}, {:.1f} % underflow", name, s.amax, 100 * s.underflow);
    if (s.overflow > 0) text += fmt::format(", {:.1f} % overflow", 100 * s.overflow);
    if (s.infinite > 0) text += fmt::format(", {} infinite", s.infinite);
    if (s.nan > 0) text += fmt::format(", {} NaN", s.nan);
    return text;
  };
  return fmt::format("  {}: {}; {}\n", m.name, part("output", m.output), part("gradient", m.gradient));
}

}  // namespace

NumericsMonitor::NumericsMonitor(nn::Module& model, DType target) : model_(model), target_(target) {
  for (const auto& [name, module] : model.named_modules()) names_.push_back(name);
  const auto count = static_cast<std::int64_t>(names_.size());
  slots_ = std::make_shared<NumericsSlots>(NumericsSlots{ops::NumericsCounter(count, target, model.device()),
                                                         ops::NumericsCounter(count, target, model.device()),
                                                         std::vector<bool>(names_.size())});
}

NumericsMonitor::~NumericsMonitor() { stop(); }

void NumericsMonitor::watch() {
  std::int64_t slot = 0;
  for (const auto& [name, module] : model_.named_modules()) {
    module->on_output([slots = slots_, slot](const Tensor& output) {
      slots->seen[static_cast<std::size_t>(slot)] = true;
      slots->outputs.add(slot, output);
      if (!grad_enabled() || !output.requires_grad()) return;
      output.register_hook([slots, slot](const Tensor& gradient) {
        slots->gradients.add(slot, gradient);
        return Tensor();
      });
    });
    ++slot;
  }
}

void NumericsMonitor::stop() {
  for (const auto& [name, module] : model_.named_modules()) module->on_output({});
}

std::vector<ModuleNumerics> NumericsMonitor::take() {
  stop();
  const std::vector<ops::NumericsSummary> outputs = slots_->outputs.take(),
                                          gradients = slots_->gradients.take();
  std::vector<ModuleNumerics> modules;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    if (slots_->seen[i]) modules.push_back({names_[i], outputs[i], gradients[i]});
    slots_->seen[i] = false;
  }
  return modules;
}

nlohmann::json to_json(const std::vector<ModuleNumerics>& modules, DType target) {
  nlohmann::json list = nlohmann::json::object();
  for (const ModuleNumerics& m : modules) {
    list[m.name] = {{"output", to_json(m.output)}, {"gradient", to_json(m.gradient)}};
  }
  return {{"dtype", name_of(target)}, {"modules", std::move(list)}};
}

std::string describe(const std::vector<ModuleNumerics>& modules, DType target) {
  std::string text =
      fmt::format("numerics of {} modules, as {} would hold them:\n", modules.size(), name_of(target));
  std::vector<const ModuleNumerics*> others;
  for (const ModuleNumerics& m : modules) {
    if (is_bad(m.output) || is_bad(m.gradient)) {
      text += line(m);
    } else if (m.gradient.underflow > 0 || m.output.underflow > 0) {
      others.push_back(&m);
    }
  }
  const std::size_t listed = std::min(kMostListed, others.size());
  const auto loss = [](const ModuleNumerics& m) {
    return std::max(m.gradient.underflow, m.output.underflow);
  };
  std::partial_sort(others.begin(), others.begin() + static_cast<std::ptrdiff_t>(listed), others.end(),
                    [&](const auto* a, const auto* b) { return loss(*a) > loss(*b); });
  for (std::size_t i = 0; i < listed; ++i) text += line(*others[i]);
  if (others.empty() && text.ends_with(":\n")) text += "  nothing is lost\n";
  return text;
}

}  // namespace ergon::trainer
