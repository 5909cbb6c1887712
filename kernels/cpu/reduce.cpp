#include <algorithm>
#include <cmath>
#include <vector>

#include "core/convert.h"
#include "core/error.h"
#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/elementwise_loop.h"
#include "kernels/cpu/row_reduce.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kWidth = 256;       // results that are accumulated side by side
constexpr std::int64_t kLeafRows = 8;      // rows added up before they enter the tree
constexpr std::int64_t kChunkRows = 512;   // rows, or
constexpr std::int64_t kChunkRun = 32768;  // elements of one row, that one task reduces
constexpr std::int64_t kShortRun = 32;     // reduced runs below this are better taken side by side
constexpr std::int64_t kGrain = 16384;     // elements that a thread is worth waking for

// Some of x's dimensions, merged where the strides allow it.
struct DimGroup {
  Shape shape;
  Strides strides;

  void add(std::int64_t size, std::int64_t stride) {
    if (size == 1) return;
    if (!shape.empty() && strides.back() == stride * size) {
      shape.back() *= size;
      strides.back() = stride;
    } else {
      shape.push_back(size);
      strides.push_back(stride);
    }
  }
  void finish() {
    if (!shape.empty()) return;
    shape.push_back(1);
    strides.push_back(0);
  }
  std::int64_t offset(std::int64_t index) const {
    std::int64_t result = 0;
    for (int dim = shape.size() - 1; dim > 0; --dim) {
      result += index % shape[dim] * strides[dim];
      index /= shape[dim];
    }
    return result + index * strides[0];
  }
};

// How the work is cut up; a function of shapes and strides alone.
struct Plan {
  DimGroup kept, reduced;
  std::int64_t kept_count = 1, reduced_count = 1;
  // Neighbouring results side by side (their columns lie closer in memory than a column's elements), or one
  // result after the other?
  bool by_columns = false;
  std::int64_t width = 1;  // results of one task
  std::int64_t chunk = 0;  // reduced elements of one task
  std::int64_t chunks = 1;
};

Plan make_plan(const ReduceArgs& args) {
  Plan plan;
  std::vector<int> reduced;
  for (int dim = 0; dim < args.shape.size(); ++dim) {
    if (args.reduced[static_cast<std::size_t>(dim)]) {
      reduced.push_back(dim);
      plan.reduced_count *= args.shape[dim];
    } else {
      plan.kept.add(args.shape[dim], args.x.strides[dim]);
      plan.kept_count *= args.shape[dim];
    }
  }
  std::stable_sort(reduced.begin(), reduced.end(),
                   [&](int a, int b) { return args.x.strides[a] > args.x.strides[b]; });
  for (int dim : reduced) plan.reduced.add(args.shape[dim], args.x.strides[dim]);
  plan.kept.finish();
  plan.reduced.finish();

  const std::int64_t run = plan.reduced.shape.back(), columns = plan.kept.shape.back();
  plan.by_columns = columns > 1
                    && (plan.kept.strides.back() < plan.reduced.strides.back() || plan.reduced_count == 1
                        || (run < kShortRun && columns >= kShortRun));
  plan.width = plan.by_columns ? std::min(columns, kWidth) : 1;
  plan.chunk = plan.by_columns ? kChunkRows : kChunkRun;
  plan.chunks = std::max<std::int64_t>((plan.reduced_count + plan.chunk - 1) / plan.chunk, 1);
  return plan;
}

template <class F>
void dispatch_op(ReduceOp op, F f) {
  if (op == ReduceOp::sum) return f([](auto a, auto b) { return combine<ReduceOp::sum>(a, b); });
  if (op == ReduceOp::max) return f([](auto a, auto b) { return combine<ReduceOp::max>(a, b); });
  f([](auto a, auto b) { return combine<ReduceOp::min>(a, b); });
}

// y[i] = f(x[i], ...)
template <class T, class F, class... X>
void loop_rows(T* y, std::int64_t n, F f, const X*... x) {
  if constexpr ((is_half(dtype_of<X>()) || ...)) {
    for_each_vector<T>(n, [&](std::int64_t i, auto at) { at.store(y + i, f(at.load(x + i)...)); });
  } else {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) y[i] = f(x[i]...);
  }
}

// into[i] = op(into[i], x[i])
template <class T, class S>
void combine_row(ReduceOp op, T* into, const S* x, std::int64_t n) {
  dispatch_op(op, [&](auto f) { loop_rows(into, n, f, into, x); });
}

// y[i] = op of eight rows
template <class T, class S>
void combine_eight(ReduceOp op, const std::array<const S*, kLeafRows>& rows, T* y, std::int64_t n) {
  dispatch_op(op, [&](auto f) {
    loop_rows(
        y, n,
        [f](auto a, auto b, auto c, auto d, auto e, auto g, auto h, auto k) {
          return f(f(f(a, b), f(c, d)), f(f(e, g), f(h, k)));
        },
        rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]);
  });
}

template <class S>
compute_t<S> reduce_values(ReduceOp op, const S* x, std::int64_t n) {
  if (op == ReduceOp::sum) return reduce_run<ReduceOp::sum>(x, n);
  if (op == ReduceOp::max) return reduce_run<ReduceOp::max>(x, n);
  return reduce_run<ReduceOp::min>(x, n);
}

// Combines rows of up to kWidth results pairwise: level k holds the combination of 2^k rows, if there is one.
template <class T>
class Tree {
 public:
  Tree(ReduceOp op, std::int64_t width) : op_(op), width_(width) {}

  T* next() { return next_; }  // where the next row goes
  void push_next() {
    int level = 0;
    for (; (count_ >> level) & 1; ++level) {
      combine_row(op_, levels_[level], next_, width_);
      std::copy_n(levels_[level], width_, next_);
    }
    ERGON_INTERNAL_ASSERT(level < kLevels);
    std::copy_n(next_, width_, levels_[level]);
    ++count_;
  }
  // Everything so far; starts again.
  const T* result() {
    std::fill_n(next_, width_, identity<T>(op_));
    bool first = true;
    for (int level = 0; count_ >> level; ++level) {
      if (!((count_ >> level) & 1)) continue;
      if (!first) combine_row(op_, levels_[level], next_, width_);
      std::copy_n(levels_[level], width_, next_);
      first = false;
    }
    count_ = 0;
    return next_;
  }

 private:
  static constexpr int kLevels = 24;

  ReduceOp op_;
  std::int64_t width_;
  std::uint64_t count_ = 0;
  alignas(64) T next_[kWidth];
  alignas(64) T levels_[kLevels][kWidth];
};

// S: what x is read as, blocks of it.
template <class S>
class Reduction {
  using T = compute_t<S>;

 public:
  Reduction(const ReduceArgs& args, T* partials) : args_(args), plan_(make_plan(args)), partials_(partials) {}

  void run() {
    if (plan_.kept_count == 0) return;
    const std::int64_t columns = plan_.kept.shape.back();
    const std::int64_t tiles = (columns + plan_.width - 1) / plan_.width;
    const std::int64_t outer = plan_.kept_count / columns;
    const std::int64_t elements =
        plan_.width * std::min(plan_.chunk, std::max<std::int64_t>(plan_.reduced_count, 1));
    parallel_for(0, outer * tiles * plan_.chunks, std::max<std::int64_t>(kGrain / elements, 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t task = begin; task < end; ++task) {
                     const std::int64_t chunk = task % plan_.chunks, tile = task / plan_.chunks % tiles;
                     const std::int64_t first = task / plan_.chunks / tiles * columns + tile * plan_.width;
                     reduce_chunk(first, std::min(plan_.width, columns - tile * plan_.width), chunk);
                   }
                 });
    if (plan_.chunks > 1) combine_partials();
  }

 private:
  // Results [first, first + width) over one chunk of the reduced elements.
  void reduce_chunk(std::int64_t first, std::int64_t width, std::int64_t chunk) {
    const std::int64_t begin = chunk * plan_.chunk, end = std::min(begin + plan_.chunk, plan_.reduced_count);
    const std::int64_t base = plan_.kept.offset(first);
    Tree<T> tree(args_.op, width);
    plan_.by_columns ? add_rows(tree, base, width, begin, end) : add_runs(tree, base, begin, end);
    const T* values = tree.result();
    if (plan_.chunks > 1) {
      std::copy_n(values, width, partials_ + chunk * plan_.kept_count + first);
    } else {
      finish(values, first, width);
    }
  }

  void add_rows(Tree<T>& tree, std::int64_t base, std::int64_t width, std::int64_t begin, std::int64_t end) {
    alignas(64) S buffers[kLeafRows][kWidth];
    const auto row = [&](std::int64_t index, S* buffer) {
      return load(block(base + plan_.reduced.offset(index), width, plan_.kept.strides.back()), buffer);
    };
    add_leaves(tree, width, begin, end, [&](std::int64_t index, int k) { return row(index, buffers[k]); });
  }

  // Feeds rows to the tree, eight at a time.
  template <class Row>
  void add_leaves(Tree<T>& tree, std::int64_t width, std::int64_t begin, std::int64_t end, Row row) {
    std::int64_t r = begin;
    for (; r + kLeafRows <= end; r += kLeafRows) {
      std::array<decltype(row(r, 0)), kLeafRows> rows;
      for (int k = 0; k < kLeafRows; ++k) rows[static_cast<std::size_t>(k)] = row(r + k, k);
      combine_eight(args_.op, rows, tree.next(), width);
      tree.push_next();
    }
    if (r == end) return;
    convert_run(row(r, 0), tree.next(), width);
    for (++r; r < end; ++r) combine_row(args_.op, tree.next(), row(r, 0), width);
    tree.push_next();
  }

  void add_runs(Tree<T>& tree, std::int64_t base, std::int64_t begin, std::int64_t end) {
    alignas(64) S buffer[kBlockSize];
    const std::int64_t run = plan_.reduced.shape.back(), stride = plan_.reduced.strides.back();
    for (std::int64_t r = begin; r < end;) {
      const std::int64_t length = std::min({end - r, run - r % run, kBlockSize});
      const S* values = load(block(base + plan_.reduced.offset(r), length, stride), buffer);
      *tree.next() = reduce_values(args_.op, values, length);
      tree.push_next();
      r += length;
    }
  }

  void combine_partials() {
    const std::int64_t tiles = (plan_.kept_count + kWidth - 1) / kWidth;
    const std::int64_t grain = std::max<std::int64_t>(kGrain / (plan_.chunks * kWidth), 1);
    parallel_for(0, tiles, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t tile = begin; tile < end; ++tile) {
        const std::int64_t first = tile * kWidth, width = std::min(kWidth, plan_.kept_count - first);
        Tree<T> tree(args_.op, width);
        add_leaves(tree, width, 0, plan_.chunks, [&](std::int64_t chunk, int) -> const T* {
          return partials_ + chunk * plan_.kept_count + first;
        });
        finish(tree.result(), first, width);
      }
    });
  }

  void finish(const T* values, std::int64_t first, std::int64_t width) {
    T results[kWidth];
    for (std::int64_t i = 0; i < width; ++i) {
      results[i] = args_.divisor == 1 ? values[i] : static_cast<T>(values[i] / static_cast<T>(args_.divisor));
    }
    char* y = static_cast<char*>(args_.y) + first * size_of(args_.y_dtype);
    store(results, {.data = y, .dtype = args_.y_dtype, .cols = width});
  }

  Block block(std::int64_t offset, std::int64_t length, std::int64_t stride) const {
    char* data = static_cast<char*>(args_.x.data) + offset * size_of(args_.x.dtype);
    return {.data = data, .dtype = args_.x.dtype, .cols = length, .col_stride = length == 1 ? 1 : stride};
  }

  const ReduceArgs& args_;
  Plan plan_;
  T* partials_;
};

}  // namespace

std::int64_t reduce_workspace(const ReduceArgs& args) {
  const Plan plan = make_plan(args);
  return plan.chunks > 1 ? plan.chunks * plan.kept_count : 0;
}

void reduce(const ReduceArgs& args, void* workspace) {
  dispatch_blocks(args.compute, std::span(&args.x, 1), [&](auto tag) {
    using S = typename decltype(tag)::type;
    Reduction<S>(args, static_cast<compute_t<S>*>(workspace)).run();
  });
}

}  // namespace ergon::kernels::cpu
