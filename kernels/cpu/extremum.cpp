#include <algorithm>

#include "core/error.h"
#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/block.h"
#include "kernels/cpu/row_reduce.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kWidth = 256;    // columns that are scanned side by side
constexpr std::int64_t kGrain = 16384;  // elements that a thread is worth waking for

template <class T>
bool is_nan(T value) {
  return value != value;
}

// The first i < n with matches(x[i]), or n. Skips ahead in runs, which vectorise.
template <class T, class F>
std::int64_t find_first(const T* x, std::int64_t n, F matches) {
  constexpr std::int64_t kRun = 64;
  std::int64_t i = 0;
  for (; i + kRun <= n; i += kRun) {
    int hits = 0;
    for (std::int64_t j = 0; j < kRun; ++j) hits += matches(x[i + j]) ? 1 : 0;
    if (hits > 0) break;
  }
  while (i < n && !matches(x[i])) ++i;
  return i;
}

// Does `value` displace `best`, which came first?
template <ReduceOp op, class T>
bool displaces(T value, T best) {
  const bool beats = op == ReduceOp::max ? value > best : value < best;
  return beats | (is_nan(value) & !is_nan(best));
}

template <ReduceOp op, class T>
class Extremum {
 public:
  explicit Extremum(const ExtremumArgs& args)
      : dtype_(args.dtype),
        x_(args.x),
        values_(args.values),
        indices_(args.indices),
        length_(args.length),
        inner_(args.inner) {}

  // One row of contiguous elements. A block is only searched when its extremum beats the one so far.
  void scan_row(std::int64_t row) const {
    alignas(64) T buffer[kBlockSize];
    T best = identity<T>(op);
    std::int64_t best_index = 0;
    for (std::int64_t i = 0; i < length_; i += kBlockSize) {
      const std::int64_t n = std::min(length_ - i, kBlockSize);
      const T* x = load(block(x_, row * length_ + i, n), buffer);
      const T found = reduce_run<op>(x, n);
      if (i > 0 && !displaces<op>(found, best)) continue;
      best = found;
      best_index = i
                   + (is_nan(best) ? find_first(x, n, [](T value) { return is_nan(value); })
                                   : find_first(x, n, [best](T value) { return value == best; }));
    }
    finish(row, 1, &best, &best_index);
  }

  // Columns [first, first + n) of one (length, inner) matrix.
  void scan_columns(std::int64_t matrix, std::int64_t first, std::int64_t n) const {
    using Index = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;  // as wide, to vectorise
    alignas(64) T buffer[kWidth], best[kWidth];
    alignas(64) Index index[kWidth];
    std::int64_t result[kWidth];
    const std::int64_t start = matrix * length_ * inner_ + first;
    std::copy_n(load(block(x_, start, n), buffer), n, best);
    std::fill_n(index, n, Index(0));
    for (std::int64_t k = 1; k < length_; ++k) {
      const T* x = load(block(x_, start + k * inner_, n), buffer);
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) {
        const bool better = displaces<op>(x[i], best[i]);
        best[i] = better ? x[i] : best[i];
        index[i] = better ? static_cast<Index>(k) : index[i];
      }
    }
    std::copy_n(index, n, result);
    finish(matrix * inner_ + first, n, best, result);
  }

 private:
  Block block(const void* base, std::int64_t offset, std::int64_t n) const {
    return {.data = const_cast<char*>(static_cast<const char*>(base)) + offset * size_of(dtype_),
            .dtype = dtype_,
            .cols = n};
  }

  void finish(std::int64_t first, std::int64_t n, const T* best, const std::int64_t* index) const {
    std::copy_n(index, n, indices_ + first);
    if (values_ != nullptr) store(best, block(values_, first, n));
  }

  DType dtype_;
  const void* x_;
  void* values_;
  std::int64_t* indices_;
  std::int64_t length_, inner_;
};

template <ReduceOp op, class T>
void extremum(const Extremum<op, T>& scan, std::int64_t outer, std::int64_t length, std::int64_t inner) {
  if (inner == 1) {
    parallel_for(0, outer, std::max<std::int64_t>(kGrain / length, 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) scan.scan_row(row);
                 });
    return;
  }
  const std::int64_t tiles = (inner + kWidth - 1) / kWidth;
  const std::int64_t grain = std::max<std::int64_t>(kGrain / (length * std::min(inner, kWidth)), 1);
  parallel_for(0, outer * tiles, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t first = task % tiles * kWidth;
      scan.scan_columns(task / tiles, first, std::min(kWidth, inner - first));
    }
  });
}

template <class Element>
void scatter(Element* dx, const Element* dy, const std::int64_t* indices, std::int64_t outer,
             std::int64_t length, std::int64_t inner) {
  for (std::int64_t o = 0; o < outer; ++o) {
    for (std::int64_t i = 0; i < inner; ++i) {
      dx[(o * length + indices[o * inner + i]) * inner + i] = dy[o * inner + i];
    }
  }
}

}  // namespace

std::int64_t extremum_workspace(const ExtremumArgs&) { return 0; }

void extremum(const ExtremumArgs& args, void*) {
  if (args.outer == 0 || args.inner == 0) return;
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.op == ReduceOp::max) {
      extremum(Extremum<ReduceOp::max, T>(args), args.outer, args.length, args.inner);
    } else {
      extremum(Extremum<ReduceOp::min, T>(args), args.outer, args.length, args.inner);
    }
  };
  if (args.dtype == DType::f64) return run(TypeTag<double>{});
  if (is_floating_point(args.dtype)) return run(TypeTag<float>{});
  run(TypeTag<std::int64_t>{});
}

void scatter_along(std::int64_t element_size, void* dx, const void* dy, const std::int64_t* indices,
                   std::int64_t outer, std::int64_t length, std::int64_t inner) {
  const auto run = [&](auto tag) {
    using Element = typename decltype(tag)::type;
    scatter(static_cast<Element*>(dx), static_cast<const Element*>(dy), indices, outer, length, inner);
  };
  if (element_size == 2) return run(TypeTag<std::uint16_t>{});
  if (element_size == 4) return run(TypeTag<std::uint32_t>{});
  ERGON_INTERNAL_ASSERT(element_size == 8);
  run(TypeTag<std::uint64_t>{});
}

}  // namespace ergon::kernels::cpu
