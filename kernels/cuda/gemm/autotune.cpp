#include "kernels/cuda/gemm/autotune.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <mutex>
#include <sstream>
#include <vector>

#include <fmt/format.h>
#include <unistd.h>

#include "core/log.h"
#include "kernels/cuda/common/launch.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

constexpr const char* kHeader = "ergon gemm plans 1";

std::filesystem::path cache_file() {
  if (const char* file = std::getenv("ERGON_GEMM_CACHE")) return file;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"))
    return std::filesystem::path(cache) / "ergon/gemm_plans";
  if (const char* home = std::getenv("HOME")) return std::filesystem::path(home) / ".cache/ergon/gemm_plans";
  return "gemm_plans";
}

int tile_named(const std::string& name) {
  for (int tile = 0; tile < kTileCount; ++tile) {
    if (name == kTiles[tile].name) return tile;
  }
  return -1;
}

// Freed on the stream it was allocated on.
class Scratch {
 public:
  explicit Scratch(std::int64_t bytes) {
    if (bytes > 0) CUDA_CHECK(cudaMallocAsync(&data_, static_cast<std::size_t>(bytes), stream()));
    if (bytes > 0) CUDA_CHECK(cudaMemsetAsync(data_, 0, static_cast<std::size_t>(bytes), stream()));
  }
  ~Scratch() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

class TimingEvent {
 public:
  TimingEvent() { CUDA_CHECK(cudaEventCreate(&event_)); }
  ~TimingEvent() { cudaEventDestroy(event_); }
  TimingEvent(const TimingEvent&) = delete;
  TimingEvent& operator=(const TimingEvent&) = delete;
  void record() { CUDA_CHECK(cudaEventRecord(event_, stream())); }
  // Milliseconds from `start` to this one, which it waits for.
  float since(const TimingEvent& start) {
    float result = 0;
    CUDA_CHECK(cudaEventSynchronize(event_));
    CUDA_CHECK(cudaEventElapsedTime(&result, start.event_, event_));
    return result;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Of the current device; asking takes long.
const std::string& device_name() {
  static std::map<int, std::string> names;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  std::string& name = names[device];
  if (name.empty()) {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    name = properties.name;
  }
  return name;
}

// Bytes from c's first element to its last.
std::int64_t extent_of(const GemmParams& p) {
  return ((p.batch_outer - 1) * p.c.outer_stride + (p.batch_inner - 1) * p.c.inner_stride
          + (p.M - 1) * p.c.row_stride + (p.N - 1) * p.c.col_stride + 1)
         * size_of(p.c.dtype);
}

// The shortest of three runs, in milliseconds, after one to warm up.
float milliseconds(const GemmParams& params, const Problem& problem, const Plan& plan) {
  TimingEvent start, end;
  run(params, problem, plan);
  float best = std::numeric_limits<float>::infinity();
  for (int repetition = 0; repetition < 3; ++repetition) {
    start.record();
    run(params, problem, plan);
    end.record();
    best = std::min(best, end.since(start));
  }
  return best;
}

}  // namespace

bool autotune_enabled() {
  static const bool enabled = [] {
    const char* value = std::getenv("ERGON_GEMM_AUTOTUNE");
    return value != nullptr && std::string(value) == "1";
  }();
  return enabled;
}

PlanCache::PlanCache(std::filesystem::path file) : file_(std::move(file)) { read(); }

void PlanCache::read() {
  std::ifstream in(file_);
  if (!in) return;
  std::map<std::string, Entry> entries;
  std::string line;
  bool valid = std::getline(in, line) && line == kHeader;
  int number = 1;
  while (valid && std::getline(in, line)) {
    ++number;
    std::istringstream fields(line);
    std::string key, tile, splits;
    valid = std::getline(fields, key, '\t') && std::getline(fields, tile, '\t')
            && std::getline(fields, splits) && tile_named(tile) >= 0 && !splits.empty() && splits.size() < 4
            && std::all_of(splits.begin(), splits.end(), [](char c) { return c >= '0' && c <= '9'; })
            && std::stoi(splits) > 0;
    if (valid) entries[key] = {tile_named(tile), std::stoi(splits)};
  }
  if (!valid) {
    log().warn("[gemm] {}, line {}: not a file of plans; it is not used", file_.string(), number);
    return;
  }
  entries.merge(entries_);
  entries_ = std::move(entries);
}

std::optional<Plan> PlanCache::find(const std::string& key, Arithmetic arithmetic) const {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return std::nullopt;
  return Plan{.arithmetic = arithmetic, .tile = found->second.tile, .splits = found->second.splits};
}

void PlanCache::add(const std::string& key, const Plan& plan) {
  read();
  entries_[key] = {plan.tile, plan.splits};
  std::error_code error;
  if (file_.has_parent_path()) std::filesystem::create_directories(file_.parent_path(), error);
  std::filesystem::path temporary = file_;
  temporary += fmt::format(".{}", getpid());
  {
    std::ofstream out(temporary);
    out << kHeader << '\n';
    for (const auto& [name, entry] : entries_) {
      out << name << '\t' << kTiles[entry.tile].name << '\t' << entry.splits << '\n';
    }
    if (!out.flush()) error = std::make_error_code(std::errc::io_error);
  }
  if (!error) std::filesystem::rename(temporary, file_, error);
  if (error) log().warn("[gemm] {}: plans could not be kept there: {}", file_.string(), error.message());
}

std::string key_of(const Problem& p) {
  return fmt::format("{} {} {}{} {}x{}x{} x{} {} {} {}", device_name(), static_cast<int>(p.arithmetic),
                     p.a_depth ? 'N' : 'T', p.b_depth ? 'T' : 'N', p.M, p.N, p.K, p.batches, p.c_size,
                     p.a.bytes_at_a_time, p.b.bytes_at_a_time);
}

Plan measured_plan(const GemmParams& params, const Problem& problem, int max_splits) {
  constexpr std::size_t kCandidates = 8;
  std::vector<Plan> plans = likely_plans(problem, max_splits);
  plans.resize(std::min(plans.size(), kCandidates));
  int most_splits = 1;
  for (const Plan& plan : plans) most_splits = std::max(most_splits, plan.splits);
  const Scratch c(extent_of(params)), workspace(workspace_bytes(problem, most_splits));
  GemmParams aside = params;
  aside.c.data = c.data();
  aside.workspace = workspace.data();
  if (!aside.activation_backward) aside.pre_activation = nullptr;
  Plan best = plans.front();
  float best_time = std::numeric_limits<float>::infinity();
  for (const Plan& plan : plans) {
    const float time = milliseconds(aside, problem, plan);
    if (time < best_time) best = plan, best_time = time;
  }
  return best;
}

Plan tuned_plan(const GemmParams& params, const Problem& problem, int max_splits) {
  static std::mutex mutex;
  static PlanCache cache(cache_file());
  const std::lock_guard lock(mutex);
  const std::string key = key_of(problem);
  if (const auto plan = cache.find(key, problem.arithmetic)) {
    const bool fits =
        plan->splits <= max_splits
        && kernel_of(problem.arithmetic, plan->tile, problem.a_depth, problem.b_depth) != nullptr;
    return fits ? *plan : best_plan(problem, max_splits);
  }
  if (max_splits == 1)
    return best_plan(problem, max_splits);  // without workspace: another call is to measure
  const Plan plan = measured_plan(params, problem, max_splits);
  cache.add(key, plan);
  return plan;
}

}  // namespace ergon::kernels::cuda::gemm_detail
