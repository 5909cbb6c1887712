#include "kernels/gemm.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

#include "core/convert.h"
#include "core/error.h"
#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/gemm_blocked.h"
#include "kernels/cpu/gemm_few_rows.h"
#include "kernels/cpu/workspace.h"

namespace ergon::kernels::cpu {

namespace gemm_detail {
namespace {

thread_local Workspace packing_workspace;  // of all threads of the team that this thread starts
thread_local Workspace bias_workspace;     // a bias converted to the accumulator's type

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Splits `size` into the fewest equal pieces of at most `limit`, rounded up to `multiple`.
int64_t even_block(int64_t size, int64_t limit, int64_t multiple) {
  const int64_t pieces = std::max<int64_t>(1, ceil_div(size, limit));
  return std::max(multiple, round_up(ceil_div(size, pieces), multiple));
}

// For a rectangle of m x n elements of C.
template <class E>
Plan make_plan(const Problem<Sum<E>>& p, int64_t m, int64_t n) {
  constexpr int64_t kBytes = sizeof(E) / kDepth<E>;  // of one k
  Plan plan;
  // A panel of B (1024 x 32 floats) takes an eighth of a 1 MiB second-level cache; longer panels mean fewer
  // passes over C.
  plan.block_k = even_block(p.K, 4096 / kBytes, 8);
  // A packed block of A (4 MB) is read once for each panel of B, from the third-level cache.
  plan.block_m = even_block(m, std::max<int64_t>(kTileM, 4 * 1024 * 1024 / kBytes / plan.block_k), kTileM);
  plan.scratch_c = p.c.dtype != dtype_of<Sum<E>>() && plan.block_k < p.K;
  plan.block_n = even_block(n, plan.scratch_c ? 512 : n, kTileN<E>);
  // Rows a multiple of 4 KB apart fall on the same lines of the first-level cache: read in place they evict
  // each other.
  const auto aliased = [](int64_t stride) { return stride * kBytes % 4096 == 0; };
  const bool pairs_in_place = p.a.row % kDepth<E> == 0 && p.a.col == 1 && p.K % kDepth<E> == 0;
  const bool a_in_place =
      p.a.dtype == dtype_of<Source<E>>() && (kDepth<E> > 1 ? pairs_in_place : p.a.row == 1 || p.a.col == 1);
  plan.pack_a = !a_in_place || (p.a.row != 1 && m > 8 && n > kTileN<E> && aliased(p.a.row));
  // A packed element of B serves m products, and saves time where B is too large for the second-level cache.
  const bool b_in_place = kDepth<E> == 1 && p.b.dtype == dtype_of<Source<E>>() && p.b.col == 1;
  const bool b_large = plan.block_k * n * kBytes > 256 * 1024;
  plan.pack_b = !b_in_place || (m > 160 && b_large) || (m > 2 * kTileM && aliased(p.b.row));
  return plan;
}

// C in rows x columns rectangles, one a thread.
struct Grid {
  int64_t rows = 1, columns = 1;
};

// The grid with the least work for a thread, packing included: packing an element takes as long as about 16
// products.
template <class T>
Grid make_grid(const Problem<T>& p, int64_t threads) {
  constexpr int64_t kPackCost = 16;
  Grid best;
  int64_t best_cost = INT64_MAX;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    if (threads % rows != 0) continue;
    const Grid grid = {rows, threads / rows};
    const int64_t m = ceil_div(p.M, grid.rows);
    const int64_t n = round_up(ceil_div(p.N, grid.columns), kLanes<T>);
    const int64_t cost = m * n + kPackCost * (m + n);  // times K
    if (cost < best_cost) best_cost = cost, best = grid;
  }
  return best;
}

// The address of matrix (outer, inner) of a batch.
template <class Pointer>
Pointer batch_entry(const GemmOperand<Pointer>& x, int64_t outer, int64_t inner) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return static_cast<Byte*>(x.data) + (outer * x.outer_stride + inner * x.inner_stride) * size_of(x.dtype);
}

// The pre-activation is read again in the backward: by then as much as a second-level cache is long gone.
bool streams_pre_activation(const GemmParams& p) {
  constexpr std::int64_t kSecondLevel = 1 << 20, kVector = kVectorBytes / static_cast<int>(sizeof(float));
  return p.pre_activation != nullptr && !p.activation_backward && p.c.dtype == DType::f32
         && p.M * p.N * static_cast<std::int64_t>(sizeof(float)) >= kSecondLevel && p.c.col_stride == 1
         && reinterpret_cast<std::uintptr_t>(p.pre_activation) % kVectorBytes == 0
         && p.c.row_stride % kVector == 0 && p.c.outer_stride % kVector == 0
         && p.c.inner_stride % kVector == 0;
}

template <class T>
Problem<T> make_problem(const GemmParams& params, const T* bias, int64_t index) {
  const int64_t outer = index / params.batch_inner, inner = index % params.batch_inner;
  Problem<T> p = {
      .M = params.M,
      .N = params.N,
      .K = params.K,
      .a = {batch_entry(params.a, outer, inner), params.a.dtype, params.a.row_stride, params.a.col_stride},
      .b = {batch_entry(params.b, outer, inner), params.b.dtype, params.b.row_stride, params.b.col_stride},
      .c = {batch_entry(params.c, outer, inner), params.c.dtype, params.c.row_stride, params.c.col_stride},
      .pre_activation = nullptr,
      .residual = nullptr,
      .bias = bias,
      .alpha = static_cast<T>(params.alpha),
      .beta = static_cast<T>(params.beta),
      .activation = params.activation,
      .activation_backward = params.activation_backward,
      .streams_pre_activation = streams_pre_activation(params),
  };
  if (params.pre_activation != nullptr) {
    p.pre_activation = static_cast<char*>(params.pre_activation)
                       + (static_cast<char*>(p.c.data) - static_cast<char*>(params.c.data));
  }
  if (params.residual != nullptr) {
    p.residual = static_cast<const char*>(params.residual)
                 + (static_cast<char*>(p.c.data) - static_cast<char*>(params.c.data));
  }
  // C's rows should be contiguous. The transposed product has the same sums in the same order.
  if (p.c.col != 1 && p.c.row == 1 && bias == nullptr) {
    std::swap(p.M, p.N);
    std::swap(p.a, p.b);
    std::swap(p.a.row, p.a.col);
    std::swap(p.b.row, p.b.col);
    std::swap(p.c.row, p.c.col);
  }
  return p;
}

template <class E>
void run(const GemmParams& params, const Sum<E>* bias) {
  using T = Sum<E>;
  const Problem<T> first = make_problem(params, bias, 0);
  const int64_t batch = params.batch_outer * params.batch_inner;
  // Starting a team takes a few microseconds, the time of about this many products.
  constexpr int64_t kSerialWork = 1 << 18;
  const int64_t work = batch * first.M * first.N * std::max<int64_t>(1, first.K);
  const int64_t threads = in_parallel_region() ? 1 : std::min<int64_t>(num_threads(), 1 + work / kSerialWork);
  // Whole matrices to each thread where there are enough for an even share; else each is cut into a grid.
  const int64_t pieces = batch >= 4 * threads ? 1 : threads / std::gcd(threads, batch);
  const bool dots = suits_dots(first), few_rows = dots || suits_scaled_rows(first);
  const Grid grid = few_rows ? Grid{1, pieces} : make_grid(first, pieces);
  const int64_t m = ceil_div(first.M, grid.rows);
  const int64_t column_vectors = ceil_div(first.N, kLanes<T>);
  const int64_t n = ceil_div(column_vectors, grid.columns) * kLanes<T>;
  const Plan plan = make_plan<E>(first, m, std::min(n, first.N));
  const int64_t packed = round_up(few_rows ? 0 : plan.packed<E>() * static_cast<int64_t>(sizeof(E)), 4096);
  const int64_t sums = few_rows ? first.M * first.K : plan.scratch();
  const int64_t workspace =
      packed + round_up(sums * static_cast<int64_t>(sizeof(T)), 4096);  // bytes a thread
  std::byte* workspaces = packing_workspace.reserve<std::byte>(threads * workspace);
  const int64_t tasks = batch * pieces;
  const auto run_tasks = [&](int64_t begin, int64_t end, int64_t thread) {
    for (int64_t task = begin; task < end; ++task) {
      const Problem<T> problem = make_problem(params, bias, task / pieces);
      const int64_t row = task % pieces / grid.columns, column = task % pieces % grid.columns;
      const int64_t i0 = problem.M * row / grid.rows, i1 = problem.M * (row + 1) / grid.rows;
      const int64_t j0 = column_vectors * column / grid.columns * kLanes<T>;
      const int64_t j1 = std::min(problem.N, column_vectors * (column + 1) / grid.columns * kLanes<T>);
      std::byte* own = workspaces + thread * workspace;
      T* own_sums = reinterpret_cast<T*>(own + packed);
      if (dots) {
        multiply_by_dots(problem, own_sums, j0, j1);
      } else if (few_rows) {
        multiply_by_scaled_rows(problem, own_sums, j0, j1);
      } else {
        BlockedGemm<E>(problem, plan, reinterpret_cast<E*>(own), own_sums).run(i0, i1, j0, j1);
      }
    }
  };
  if (threads == 1) return run_tasks(0, tasks, 0);
#ifdef _OPENMP
#pragma omp parallel num_threads(static_cast <int>(threads))
  {
    const int64_t count = omp_get_num_threads(), thread = omp_get_thread_num();
    run_tasks(tasks * thread / count, tasks * (thread + 1) / count, thread);
  }
#endif
}

void check(const GemmParams& params) {
  const DType a = params.a.dtype, b = params.b.dtype, c = params.c.dtype;
  const DType bias = params.bias == nullptr ? c : params.bias_dtype;
  for (const DType dtype : {a, b, c, bias}) {
    ERGON_CHECK(is_floating_point(dtype), "[gemm] dtype {}: expected f32, bf16, f16 or f64", name_of(dtype));
  }
  const bool f64 = a == DType::f64;
  ERGON_CHECK((b == DType::f64) == f64 && (c == DType::f64) == f64 && (bias == DType::f64) == f64,
              "[gemm] dtypes a {}, b {}, c {}, bias {}: f64 does not mix with the others", name_of(a),
              name_of(b), name_of(c), name_of(bias));
  ERGON_INTERNAL_ASSERT(params.M >= 0 && params.N >= 0 && params.K >= 0);
}

template <class E>
void convert_bias_and_run(const GemmParams& params) {
  using T = Sum<E>;
  if (params.bias == nullptr || params.bias_dtype == dtype_of<T>()) {
    return run<E>(params, static_cast<const T*>(params.bias));
  }
  T* bias = bias_workspace.reserve<T>(params.N);
  dispatch_floating(params.bias_dtype, "gemm", [&](auto tag) {
    convert_run(static_cast<const typename decltype(tag)::type*>(params.bias), bias, params.N);
  });
  run<E>(params, bias);
}

}  // namespace
}  // namespace gemm_detail

void gemm(const GemmParams& params) {
  gemm_detail::check(params);
  if (params.M == 0 || params.N == 0 || params.batch_outer <= 0 || params.batch_inner <= 0) return;
  if (params.a.dtype == DType::f64) {
    gemm_detail::convert_bias_and_run<double>(params);
#ifdef __AVX512BF16__
  } else if (params.a.dtype == DType::bf16 && params.b.dtype == DType::bf16) {
    gemm_detail::convert_bias_and_run<gemm_detail::bf16x2>(params);
#endif
  } else {
    gemm_detail::convert_bias_and_run<float>(params);
  }
}

}  // namespace ergon::kernels::cpu
