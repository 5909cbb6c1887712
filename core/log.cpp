#include "core/log.h"

#include <cstdlib>

#include <spdlog/sinks/stdout_color_sinks.h>

namespace ergon {

spdlog::logger& log() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = spdlog::get("ergon");
    if (!made) made = spdlog::stderr_color_mt("ergon");
    made->set_pattern("%^%l%$: %v");
    const char* level = std::getenv("ERGON_LOG_LEVEL");
    made->set_level(level != nullptr ? spdlog::level::from_str(level) : spdlog::level::info);
    return made;
  }();
  return *logger;
}

}  // namespace ergon
