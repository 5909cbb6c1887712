#include "models/trainer/metrics_log.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "core/error.h"

namespace ergon::trainer {
namespace {

// Whole lines of steps up to last_step; what a crash left behind them is dropped.
std::vector<nlohmann::json> read_up_to(const std::string& path, std::int64_t last_step) {
  std::vector<nlohmann::json> entries;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    nlohmann::json entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!entry.is_object() || !entry.contains("step") || !entry["step"].is_number_integer()) break;
    if (entry["step"].get<std::int64_t>() > last_step) break;
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace

MetricsLog::MetricsLog(std::string path, std::int64_t last_step) : path_(std::move(path)) {
  if (last_step >= 0) entries_ = read_up_to(path_, last_step);
  file_ = std::fopen(path_.c_str(), "w");
  ERGON_CHECK(file_ != nullptr, "cannot write {}: {}", path_, std::strerror(errno));
  for (const nlohmann::json& entry : std::exchange(entries_, {})) write(entry);
}

MetricsLog::~MetricsLog() {
  if (file_ != nullptr) std::fclose(file_);
}

void MetricsLog::write(const nlohmann::json& entry) {
  const std::string line = entry.dump() + "\n";
  const bool written =
      std::fwrite(line.data(), 1, line.size(), file_) == line.size() && std::fflush(file_) == 0;
  ERGON_CHECK(written, "cannot write {}: {}", path_, std::strerror(errno));
  entries_.push_back(entry);
}

}  // namespace ergon::trainer
