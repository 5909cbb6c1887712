// The contract of kernels/gemm.h on CUDA.

#include "kernels/gemm.h"

#include <algorithm>

#include "core/error.h"
#include "core/log.h"
#include "kernels/cuda/gemm/autotune.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/gemm/widen.h"
#include "kernels/cuda/providers/cublaslt.h"
#include "kernels/providers.h"

namespace ergon::kernels::cuda {
namespace {

using namespace gemm_detail;

constexpr int kMaxSplits = 32;

bool is_empty(const GemmParams& p) {
  return p.M == 0 || p.N == 0 || p.batch_outer == 0 || p.batch_inner == 0;
}

void check(const GemmParams& p) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  ERGON_CHECK(p.M >= 0 && p.N >= 0 && p.K >= 0 && p.M < kLimit && p.N < kLimit && p.K < kLimit
                  && p.batch_outer >= 0 && p.batch_inner >= 0,
              "[gemm] M {}, N {}, K {}, batch {} x {}: expected sizes from 0 to 2^31 - 1", p.M, p.N, p.K,
              p.batch_outer, p.batch_inner);
  const DType bias = p.bias == nullptr ? p.c.dtype : p.bias_dtype;
  int doubles = 0;
  for (const DType dtype : {p.a.dtype, p.b.dtype, p.c.dtype, bias}) {
    ERGON_CHECK(is_floating_point(dtype), "[gemm] dtype {}: expected f32, bf16, f16 or f64", name_of(dtype));
    doubles += dtype == DType::f64 ? 1 : 0;
  }
  ERGON_CHECK(doubles == 0 || doubles == 4,
              "[gemm] dtypes a {}, b {}, c {}, bias {}: f64 does not mix with the others", name_of(p.a.dtype),
              name_of(p.b.dtype), name_of(p.c.dtype), name_of(p.bias_dtype));
  if (is_empty(p)) return;
  ERGON_CHECK(p.c.data != nullptr && (p.K == 0 || (p.a.data != nullptr && p.b.data != nullptr)),
              "[gemm] M {}, N {}, K {}: an operand has no data", p.M, p.N, p.K);
  ERGON_CHECK(!p.activation_backward || p.pre_activation != nullptr,
              "[gemm] activation_backward without pre_activation");
  ERGON_CHECK(reinterpret_cast<std::uintptr_t>(p.workspace) % 16 == 0,
              "[gemm] workspace at {}: expected alignment to 16 bytes", p.workspace);
}

Plan plan_for(const GemmParams& params, const Problem& problem, int max_splits) {
  if (problem.arithmetic == Arithmetic::simt) return {};
  return autotune_enabled() ? tuned_plan(params, problem, max_splits) : best_plan(problem, max_splits);
}

}  // namespace

void gemm(const GemmParams& params) {
  check(params);
  if (is_empty(params)) return;
  if (gemm_provider() == GemmProvider::cublaslt && cublaslt_gemm(params)) return;
  const bool widen = has_two_dtypes(params) && params.workspace != nullptr;
  const GemmParams p = widen ? widened(params) : params;
  const Problem problem = problem_of(p);
  if (problem.arithmetic == Arithmetic::simt) return launch_simt(params);
  const int max_splits = p.workspace == nullptr ? 1 : kMaxSplits;
  const Plan plan = widen ? best_plan(problem, max_splits) : plan_for(p, problem, max_splits);
  SPDLOG_LOGGER_DEBUG(&log(), "[gemm] M {} N {} K {} batch {}: {}", p.M, p.N, p.K, problem.batches,
                      describe(problem, plan));
  if (widen) launch_widen(params);
  run(p, problem, plan);
}

std::int64_t gemm_workspace(const GemmParams& params) {
  check(params);
  if (is_empty(params)) return 0;
  std::int64_t bytes = 0;
  if (has_two_dtypes(params)) {
    const Problem problem = problem_of(widened(params));
    bytes = widened_bytes(params) + workspace_bytes(problem, best_plan(problem, kMaxSplits).splits);
  } else {
    const Problem problem = problem_of(params);
    bytes = workspace_bytes(problem, plan_for(params, problem, kMaxSplits).splits);
  }
  return gemm_provider() == GemmProvider::cublaslt ? std::max(bytes, cublaslt_workspace()) : bytes;
}

std::string gemm_plan(const GemmParams& params) {
  check(params);
  const Problem problem = problem_of(has_two_dtypes(params) ? widened(params) : params);
  return describe(problem, best_plan(problem, kMaxSplits));
}

}  // namespace ergon::kernels::cuda
