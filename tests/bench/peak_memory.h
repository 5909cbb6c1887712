#pragma once

// Memory of the process, on Linux.

#include <fstream>
#include <string>

namespace ergon::bench {

// The most memory that the process has had at a time, in MiB: since reset_peak_rss(), or its start.
inline double peak_rss_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}
inline void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace ergon::bench
