#pragma once

// metrics.jsonl: one JSON object a line, each with a "step".

#include <cstdio>
#include <string>

#include <nlohmann/json.hpp>

namespace ergon::trainer {

class MetricsLog {
 public:
  // Opens `path`. Lines of steps after `last_step` (of a run that is resumed from there), and a line that a
  // crash cut off, are removed; last_step < 0 starts afresh. Throws Error naming the path if it cannot be
  // written.
  MetricsLog(std::string path, std::int64_t last_step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // Appends a line; it is in the file when this returns.
  void write(const nlohmann::json& entry);

  // Every line so far.
  const std::vector<nlohmann::json>& entries() const { return entries_; }

 private:
  std::string path_;
  std::FILE* file_ = nullptr;
  std::vector<nlohmann::json> entries_;
};

}  // namespace ergon::trainer
