#pragma once

// Plans by measurement instead of estimate, where ERGON_GEMM_AUTOTUNE=1 asks for it. The first product of
// each shape then takes a few times as long; results are kept in a file (ERGON_GEMM_CACHE, else
// $XDG_CACHE_HOME/ergon/gemm_plans, else ~/.cache/ergon/gemm_plans).

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "kernels/cuda/gemm/plan.h"

namespace ergon::kernels::cuda::gemm_detail {

bool autotune_enabled();

// Tiles and splits by problem, and the file that keeps them:
//   ergon gemm plans 1
//   <key> <tab> <tile> <tab> <splits>
// A file that is damaged or of another version is reported once and not used. Writing replaces the file as a
// whole, with what other processes added since.
class PlanCache {
 public:
  explicit PlanCache(std::filesystem::path file);

  std::optional<Plan> find(const std::string& key, Arithmetic arithmetic) const;
  void add(const std::string& key, const Plan& plan);

 private:
  struct Entry {
    int tile, splits;
  };
  void read();

  std::filesystem::path file_;
  std::map<std::string, Entry> entries_;
};

// All that the time of a product depends on, the GPU's name first.
std::string key_of(const Problem& problem);

// The fastest of the likeliest plans for `params`, measured on the current stream with scratch memory of its
// own. c and pre_activation are left alone.
Plan measured_plan(const GemmParams& params, const Problem& problem, int max_splits);

// From the process's cache, or measured and added to it.
Plan tuned_plan(const GemmParams& params, const Problem& problem, int max_splits);

}  // namespace ergon::kernels::cuda::gemm_detail
