#pragma once

// Which kernel runs a product.

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/gemm/kernel.h"

namespace ergon::kernels::cuda::gemm_detail {

enum class Arithmetic : std::uint8_t { simt, bf16, f16, tf32, split_tf32 };

struct Plan {
  Arithmetic arithmetic = Arithmetic::simt;
  int tile = 0;       // of kTiles; this and the rest without meaning for simt
  int splits = 1;     // of K
  double cycles = 0;  // the estimate it was chosen by

  bool operator==(const Plan&) const = default;
};

// What the choice depends on.
struct Problem {
  Arithmetic arithmetic;
  std::int64_t M, N, K, batches;
  Source a, b;
  bool a_depth, b_depth;  // lines run along K
  int c_size;             // bytes of an element
};

Problem problem_of(const GemmParams& params);
TensorCoreKernel* kernel_of(Arithmetic arithmetic, int tile, bool a_depth, bool b_depth);

// Plans that the device can run, with at most `max_splits`, the one of the fewest estimated cycles first.
std::vector<Plan> likely_plans(const Problem& problem, int max_splits);
// The first of them.
Plan best_plan(const Problem& problem, int max_splits);
// The estimate for one choice; infinity where there is no such kernel or the device cannot hold it.
double estimated_cycles(const Problem& problem, int tile, int splits);
// The partial sums of a split.
std::int64_t workspace_bytes(const Problem& problem, int splits);

std::string describe(const Problem& problem, const Plan& plan);

// Runs `params` by `plan`, whose kernel must exist; params.workspace has workspace_bytes where it splits.
void run(const GemmParams& params, const Problem& problem, const Plan& plan);

}  // namespace ergon::kernels::cuda::gemm_detail
