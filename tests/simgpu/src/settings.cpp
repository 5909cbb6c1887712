#include "settings.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace simgpu {
namespace {

// The variable's value where it is set and not empty.
std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}
[[noreturn]] void refuse(const char* name, const std::string& value, const std::string& expected) {
  std::fprintf(stderr, "simgpu: %s=%s: expected %s\n", name, value.c_str(), expected.c_str());
  std::_Exit(1);  // static objects may not be there yet
}

// A whole number from `least` to `most`; with `units` also as 512M or 2G.
std::optional<u64> number(const char* name, u64 least, u64 most, bool units = false) {
  const std::optional<std::string> text = variable(name);
  if (!text) return std::nullopt;
  char* end = nullptr;
  const u64 value = std::strtoull(text->c_str(), &end, 0);
  const char unit = units ? *end : '\0';
  const int shift = unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0;
  if (shift != 0) ++end;
  if (!std::isdigit(static_cast<unsigned char>(text->front())) || *end != '\0' || value < least
      || value > most >> shift)
    refuse(name, *text,
           "a number from " + std::to_string(least) + " to " + std::to_string(most)
               + (units ? ", also as 512M or 2G" : ""));
  return value << shift;
}

void choose_checkers(Settings& s) {
  constexpr const char* kName = "ERGON_SIMGPU_CHECK";
  const std::optional<std::string> list = variable(kName);
  if (!list) return;
  const std::pair<std::string_view, bool*> checkers[] = {{"memory", &s.check_memory},
                                                         {"initialised", &s.check_initialised},
                                                         {"shared-races", &s.check_shared_races},
                                                         {"global-races", &s.check_global_races},
                                                         {"leaks", &s.check_leaks}};
  for (const auto& [name, on] : checkers) *on = false;
  if (*list == "0") return;
  std::istringstream names(*list);
  for (std::string wanted; std::getline(names, wanted, ',');) {
    const auto* const found = std::find_if(std::begin(checkers), std::end(checkers),
                                           [&](const auto& c) { return c.first == wanted; });
    if (found == std::end(checkers))
      refuse(kName, *list,
             "0, or memory, initialised, shared-races, global-races, leaks, with commas between them");
    *found->second = true;
  }
}

Settings from_environment() {
  constexpr u64 kMost = u64{1} << 38;
  Settings s;
  s.devices = static_cast<int>(number("ERGON_SIMGPU_DEVICES", 1, 64).value_or(1));
  s.memory_bytes = number("ERGON_SIMGPU_MEMORY", 1, kMost, true).value_or(s.memory_bytes);
  s.order_seed = number("ERGON_SIMGPU_ORDER", 0, ~u64{0}).value_or(0);
  s.threads = static_cast<int>(number("ERGON_SIMGPU_THREADS", 0, 1024).value_or(0));
  const std::string profile = variable("ERGON_SIMGPU_PROFILE").value_or("0");
  if (profile != "0" && profile != "1" && profile != "lines")
    refuse("ERGON_SIMGPU_PROFILE", profile, "0, 1 or lines");
  s.profile = profile != "0";
  s.count_lines = profile == "lines";
  choose_checkers(s);
  return s;
}

}  // namespace

Settings& settings() {
  static Settings s = from_environment();
  return s;
}

}  // namespace simgpu
