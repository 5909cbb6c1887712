#include "settings.h"

#include <cstdlib>
#include <cstring>
#include <string>

namespace simgpu {
namespace {

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

// "1000", "512M", "2G"; 0: not such a number.
u64 bytes_of(const char* text) {
  char* end = nullptr;
  const u64 number = std::strtoull(text, &end, 10);
  const char unit = *end;
  const int shift = unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0;
  return unit != '\0' && (shift == 0 || end[1] != '\0') ? 0 : number << shift;
}

Settings from_environment() {
  Settings s;
  if (const int n = std::atoi(variable("ERGON_SIMGPU_DEVICES")); n > 0) s.devices = n < 64 ? n : 64;
  if (const u64 bytes = bytes_of(variable("ERGON_SIMGPU_MEMORY")); bytes > 0) s.memory_bytes = bytes;
  s.order_seed = std::strtoull(variable("ERGON_SIMGPU_ORDER"), nullptr, 0);
  s.threads = std::atoi(variable("ERGON_SIMGPU_THREADS"));
  const std::string profile = variable("ERGON_SIMGPU_PROFILE");
  s.count_lines = profile == "lines";
  s.profile = s.count_lines || (!profile.empty() && profile != "0");
  const std::string checks = variable("ERGON_SIMGPU_CHECK");
  if (!checks.empty()) {
    const auto wanted = [&](const char* name) {
      return ("," + checks + ",").find("," + std::string(name) + ",") != std::string::npos;
    };
    s.check_memory = wanted("memory");
    s.check_initialised = wanted("initialised");
    s.check_shared_races = wanted("shared-races");
    s.check_global_races = wanted("global-races");
    s.check_leaks = wanted("leaks");
  }
  return s;
}

}  // namespace

Settings& settings() {
  static Settings s = from_environment();
  return s;
}

}  // namespace simgpu
