#include "kernels/cuda/gemm/plan.h"

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>

#include <fmt/format.h>

#include "core/error.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/gemm/epilogue.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Lines along `line` (a dimension of stride `line_stride`), elements along the other.
Source source_along(const GemmOperand<const void*>& x, std::int64_t unit, std::int64_t line_stride,
                    std::int64_t lines, const GemmParams& p) {
  Source source{x.data, lines > 1 ? line_stride : 0, unit, x.outer_stride, x.inner_stride, 0};
  const auto lines_start_at_multiples_of = [&](std::int64_t bytes) {
    const auto whole = [&](std::int64_t stride) { return stride * size_of(x.dtype) % bytes == 0; };
    return reinterpret_cast<std::uintptr_t>(x.data) % static_cast<std::uintptr_t>(bytes) == 0
           && whole(source.line_stride) && (p.batch_outer == 1 || whole(x.outer_stride))
           && (p.batch_inner == 1 || whole(x.inner_stride));
  };
  if (unit == 1 && lines_start_at_multiples_of(16)) {
    source.bytes_at_a_time = 16;
  } else if (size_of(x.dtype) == 4 || (unit == 1 && lines_start_at_multiples_of(4))) {
    source.bytes_at_a_time = 4;
  }
  return source;
}

// Sets `depth`: whether the lines are those along K, of the two ways the better one.
Source source_of(const GemmOperand<const void*>& x, std::int64_t row_stride, std::int64_t depth_stride,
                 std::int64_t rows, const GemmParams& p, bool& depth) {
  const Source along_depth = source_along(x, depth_stride, row_stride, rows, p);
  const Source along_rows = source_along(x, row_stride, depth_stride, p.K, p);
  if (along_depth.bytes_at_a_time != along_rows.bytes_at_a_time) {
    depth = along_depth.bytes_at_a_time > along_rows.bytes_at_a_time;
  } else {
    depth = depth_stride == 1 || row_stride != 1;
  }
  return depth ? along_depth : along_rows;
}

// Copies address up to this many lines ahead by an offset of 32 bits.
constexpr std::int64_t kMostLinesAtATime = 64;

bool within_reach(const Source& source, DType dtype) {
  return source.line_stride * kMostLinesAtATime * size_of(dtype) < std::int64_t{1} << 31;
}

Arithmetic arithmetic_of(const GemmParams& p) {
  if (p.a.dtype != p.b.dtype || p.c.dtype == DType::f64) return Arithmetic::simt;
  switch (p.a.dtype) {
    case DType::bf16:
      return Arithmetic::bf16;
    case DType::f16:
      return Arithmetic::f16;
    case DType::f32:
      return p.allow_tf32 ? Arithmetic::tf32 : Arithmetic::split_tf32;
    default:
      return Arithmetic::simt;
  }
}

int element_size(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::tf32 || arithmetic == Arithmetic::split_tf32 ? 4 : 2;
}

// Blocks of a kernel that a multiprocessor of the current device holds; 0: none. Asked for once.
int resident_blocks(const Problem& problem, int tile) {
  static std::mutex mutex;
  static std::array<std::array<std::array<int, 4>, kTileCount>, 5> known{};  // plus 1
  const std::size_t layout = (problem.a_depth ? 2 : 0) + (problem.b_depth ? 1 : 0);
  const std::lock_guard lock(mutex);
  int& entry = known[static_cast<std::size_t>(problem.arithmetic)][static_cast<std::size_t>(tile)][layout];
  if (entry == 0) {
    TensorCoreKernel* kernel = kernel_of(problem.arithmetic, tile, problem.a_depth, problem.b_depth);
    int blocks = 0;
    if (kernel != nullptr && kTiles[tile].shared_bytes() <= device_limits().shared_bytes_per_block) {
      blocks = resident_blocks_of(kernel, kTiles[tile]);
    }
    entry = blocks + 1;
  }
  return entry - 1;
}

std::int64_t tiles_of(const Problem& problem, const Tile& tile) {
  return problem.batches * ceil_div(problem.M, tile.rows) * ceil_div(problem.N, tile.cols);
}

std::int64_t steps_of(const Problem& problem, const Tile& tile) {
  return ceil_div(problem.K, tile.step(element_size(problem.arithmetic)));
}

}  // namespace

TensorCoreKernel* kernel_of(Arithmetic arithmetic, int tile, bool a_depth, bool b_depth) {
  switch (arithmetic) {
    case Arithmetic::bf16:
      return bf16_kernel(tile, a_depth, b_depth);
    case Arithmetic::f16:
      return f16_kernel(tile, a_depth, b_depth);
    case Arithmetic::tf32:
      return tf32_kernel(tile, a_depth, b_depth);
    case Arithmetic::split_tf32:
      return split_tf32_kernel(tile, a_depth, b_depth);
    default:
      return nullptr;
  }
}

Problem problem_of(const GemmParams& p) {
  Problem problem{.arithmetic = arithmetic_of(p),
                  .M = p.M,
                  .N = p.N,
                  .K = p.K,
                  .batches = p.batch_outer * p.batch_inner,
                  .a = {},
                  .b = {},
                  .a_depth = true,
                  .b_depth = true,
                  .c_size = static_cast<int>(size_of(p.c.dtype))};
  problem.a = source_of(p.a, p.a.row_stride, p.a.col_stride, p.M, p, problem.a_depth);
  problem.b = source_of(p.b, p.b.col_stride, p.b.row_stride, p.N, p, problem.b_depth);
  if (!within_reach(problem.a, p.a.dtype) || !within_reach(problem.b, p.b.dtype)) {
    problem.arithmetic = Arithmetic::simt;
  }
  return problem;
}

// The busiest multiprocessor's cycles on a GPU like A100: for each K-step the larger of what its tensor cores
// and its shared memory need, for each tile the latency of filling the pipeline and of writing C, which
// another block on the multiprocessor hides.
double estimated_cycles(const Problem& problem, int tile_index, int splits) {
  constexpr double kMmaCycles = 2;       // of the four tensor cores together
  constexpr double kBarrierCycles = 40;  // in which no mma is issued
  constexpr double kFillCycles = 1500;   // launch, first copies, last sums
  constexpr double kBytesPerCycle = 8;   // of global memory to one multiprocessor, when all are busy
  constexpr double kSecondLaunch = 4000;
  const Tile& tile = kTiles[tile_index];
  const int resident = resident_blocks(problem, tile_index);
  if (resident == 0) return std::numeric_limits<double>::infinity();
  const int parts = tile.step_bytes / 32;
  const int passes = problem.arithmetic == Arithmetic::split_tf32 ? 3 : 1;
  const double mma = passes * kMmaCycles * parts * (tile.rows / 16) * (tile.cols / 8);
  // ldmatrix reads 512 bytes, 128 a cycle; a copy writes each byte once.
  const double fragments = tile.threads() / 32.0 * parts * (tile.warp_rows + tile.warp_cols) / 16;
  const double shared = fragments * 4 + (tile.rows + tile.cols) * tile.step_bytes / 128.0;
  const std::int64_t processors = device_limits().multiprocessors;
  const std::int64_t items = tiles_of(problem, tile) * splits,
                     steps = ceil_div(steps_of(problem, tile), splits);
  const double per_processor = static_cast<double>(ceil_div(items, processors));
  const double overlap = std::min<double>(resident, per_processor);
  const double c_bytes = static_cast<double>(tile.rows) * tile.cols * (splits > 1 ? 4 : problem.c_size);
  const double item = static_cast<double>(steps) * (std::max(mma, shared) + kBarrierCycles / overlap)
                      + (kFillCycles + c_bytes / kBytesPerCycle) / overlap;
  double cycles = per_processor * item;
  if (splits > 1) {
    const double elements = static_cast<double>(problem.batches * problem.M * problem.N);
    cycles +=
        kSecondLaunch
        + elements * (4.0 * splits + problem.c_size) / (kBytesPerCycle * static_cast<double>(processors));
  }
  return cycles;
}

std::int64_t workspace_bytes(const Problem& problem, int splits) {
  return splits == 1 ? 0 : splits * problem.batches * problem.M * ceil_div(problem.N, 4) * 4 * 4;
}

std::vector<Plan> likely_plans(const Problem& problem, int max_splits) {
  constexpr int kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
  constexpr int kFewestSteps = 4;  // of a split
  std::vector<Plan> plans;
  for (int tile = 0; tile < kTileCount; ++tile) {
    if (resident_blocks(problem, tile) == 0) continue;
    for (const int splits : kSplits) {
      if (splits > 1 && (splits > max_splits || steps_of(problem, kTiles[tile]) < kFewestSteps * splits))
        break;
      plans.push_back({problem.arithmetic, tile, splits, estimated_cycles(problem, tile, splits)});
    }
  }
  std::stable_sort(plans.begin(), plans.end(),
                   [](const Plan& x, const Plan& y) { return x.cycles < y.cycles; });
  return plans;
}

Plan best_plan(const Problem& problem, int max_splits) {
  if (problem.arithmetic == Arithmetic::simt) return {};
  const std::vector<Plan> plans = likely_plans(problem, max_splits);
  ERGON_CHECK(!plans.empty(), "[gemm] no kernel fits this device: {} bytes of shared memory a block",
              device_limits().shared_bytes_per_block);
  return plans.front();
}

std::string describe(const Problem& problem, const Plan& plan) {
  if (plan.arithmetic == Arithmetic::simt) {
    return "simt: dtypes or strides that the tensor-core kernels do not take";
  }
  constexpr const char* kNames[] = {"simt", "bf16", "f16", "tf32", "split tf32"};
  const Tile& tile = kTiles[plan.tile];
  const std::int64_t items = tiles_of(problem, tile) * plan.splits;
  std::string others;
  for (int other = 0; other < kTileCount; ++other) {
    if (other == plan.tile) continue;
    fmt::format_to(std::back_inserter(others), " {} {:.0f}", kTiles[other].name,
                   estimated_cycles(problem, other, 1));
  }
  const bool by_16_bytes = problem.a.bytes_at_a_time == 16 && problem.b.bytes_at_a_time == 16;
  return fmt::format(
      "{} {}{} {} steps of {}, {} splits: {} items on {} multiprocessors x {} blocks, about {:.0f} cycles "
      "(unsplit:{}){}",
      kNames[static_cast<int>(plan.arithmetic)], problem.a_depth ? 'N' : 'T', problem.b_depth ? 'T' : 'N',
      tile.name, tile.step(element_size(plan.arithmetic)), plan.splits, items,
      device_limits().multiprocessors, resident_blocks(problem, plan.tile), plan.cycles, others,
      by_16_bytes ? ""
                  : fmt::format(", copies of {} and {} bytes at a time", problem.a.bytes_at_a_time,
                                problem.b.bytes_at_a_time));
}

void run(const GemmParams& p, const Problem& problem, const Plan& plan) {
  const Tile& tile = kTiles[plan.tile];
  TensorCoreArguments arguments{
      .a = problem.a,
      .b = problem.b,
      .epilogue = epilogue_of<float>(p),
      .M = static_cast<int>(p.M),
      .N = static_cast<int>(p.N),
      .K = static_cast<int>(p.K),
      .tiles_m = static_cast<int>(ceil_div(p.M, tile.rows)),
      .tiles_n = static_cast<int>(ceil_div(p.N, tile.cols)),
      .batch_inner = static_cast<int>(p.batch_inner),
      .tiles = static_cast<int>(tiles_of(problem, tile)),
      .splits = plan.splits,
      .steps_per_split = static_cast<int>(ceil_div(steps_of(problem, tile), plan.splits)),
      .split_stride = 0};
  ReduceArguments reduce{};
  if (plan.splits > 1) {
    ERGON_CHECK(p.workspace != nullptr, "[gemm] a plan of {} splits without workspace", plan.splits);
    const std::int64_t row_stride = ceil_div(p.N, 4) * 4, matrix = p.M * row_stride;
    reduce = {.partial = static_cast<const float*>(p.workspace),
              .epilogue = arguments.epilogue,
              .M = p.M,
              .N = p.N,
              .batch_outer = p.batch_outer,
              .batch_inner = p.batch_inner,
              .row_stride = row_stride,
              .split_stride = problem.batches * matrix,
              .splits = plan.splits};
    arguments.split_stride = reduce.split_stride;
    arguments.epilogue = {};
    arguments.epilogue.c = p.workspace;
    arguments.epilogue.row_stride = row_stride;
    arguments.epilogue.outer_stride = p.batch_inner * matrix;
    arguments.epilogue.inner_stride = matrix;
    arguments.epilogue.vectors = true;
  }
  const std::int64_t items = std::int64_t{arguments.tiles} * plan.splits;
  const std::int64_t slots =
      std::int64_t{device_limits().multiprocessors} * std::max(resident_blocks(problem, plan.tile), 1);
  launch_tensor_core(kernel_of(plan.arithmetic, plan.tile, problem.a_depth, problem.b_depth), tile,
                     static_cast<int>(std::min(items, slots)), arguments);
  if (plan.splits > 1) launch_reduce(reduce);
}

}  // namespace ergon::kernels::cuda::gemm_detail
