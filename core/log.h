#pragma once

// The logger that the library and its programs share: spdlog, on standard error.
// ERGON_LOG_LEVEL = trace | debug | info (default) | warn | error | off.

#include <spdlog/spdlog.h>

namespace ergon {

// The logger named "ergon"; it is made on first use. Users may replace its sinks.
spdlog::logger& log();

}  // namespace ergon
