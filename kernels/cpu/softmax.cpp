#include "kernels/softmax.h"

#include <algorithm>
#include <limits>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/half_math.h"
#include "kernels/cpu/row_reduce.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kWidth = 128;   // columns that are worked on side by side
constexpr std::int64_t kRun = 32;      // elements of a column that are added up before they join the sum
constexpr std::int64_t kPiece = 512;   // elements of a row that are added up before they join the sum
constexpr std::int64_t kKept = 1024;   // elements of a row of halves whose exponentials are kept
constexpr std::int64_t kGrain = 4096;  // elements that a thread is worth waking for

// --- along the last dimension: one row ---

// The sum of term(i, at) over a row.
template <class T, class Term>
T sum_row(std::int64_t length, Term term) {
  double sum = 0;
  for (std::int64_t begin = 0; begin < length; begin += kPiece) {
    VectorSum<T> piece;
    for_each_vector<T>(std::min(kPiece, length - begin),
                       [&](std::int64_t i, auto at) { piece.add(at, term(begin + i, at)); });
    sum += piece.total();
  }
  return static_cast<T>(sum);
}

template <class T, class S>
void forward_row(SoftmaxForm form, const S* x, S* y, std::int64_t length) {
  // A NaN that is passed over here comes back from the exponentials.
  const T max = reduce_run<ReduceOp::max, NanMode::skip>(x, length);
  alignas(64) T buffer[kKept];
  T* exps = nullptr;  // where they are kept
  if (form == SoftmaxForm::softmax) {
    if constexpr (std::is_same_v<S, T>) {
      exps = y;
    } else if (length <= kKept) {
      exps = buffer;
    }
  }
  const T sum = sum_row<T>(length, [&](std::int64_t i, auto at) {
    const Vec<T> e = exp_for<S>(at.load(x + i) - max);
    if (exps != nullptr) at.store(exps + i, e);
    return e;
  });
  if (form == SoftmaxForm::log_softmax) {
    const T log_sum = vlog(sum);
    for_each_vector<T>(length,
                       [&](std::int64_t i, auto at) { at.store(y + i, (at.load(x + i) - max) - log_sum); });
    return;
  }
  const T scale = T(1) / sum;
  for_each_vector<T>(length, [&](std::int64_t i, auto at) {
    at.store(y + i, (exps != nullptr ? at.load(exps + i) : exp_for<S>(at.load(x + i) - max)) * scale);
  });
}

template <class T, class S>
void backward_row(SoftmaxForm form, const S* y, const S* dy, S* dx, std::int64_t length) {
  if (form == SoftmaxForm::log_softmax) {
    const T sum = sum_row<T>(length, [&](std::int64_t i, auto at) { return at.load(dy + i); });
    for_each_vector<T>(length, [&](std::int64_t i, auto at) {
      at.store(dx + i, at.load(dy + i) - exp_for<S>(at.load(y + i)) * sum);
    });
    return;
  }
  const T sum = sum_row<T>(length, [&](std::int64_t i, auto at) { return at.load(dy + i) * at.load(y + i); });
  for_each_vector<T>(
      length, [&](std::int64_t i, auto at) { at.store(dx + i, at.load(y + i) * (at.load(dy + i) - sum)); });
}

// --- along another dimension: `width` columns side by side, their elements `inner` apart ---

// sum[i] = the sum of term(k, i, at) over k, in runs.
template <class T, class Term>
void sum_columns(std::int64_t length, std::int64_t width, T* sum, Term term) {
  alignas(64) T run[kWidth];
  std::fill_n(sum, width, T(0));
  for (std::int64_t begin = 0; begin < length; begin += kRun) {
    std::fill_n(run, width, T(0));
    for (std::int64_t k = begin; k < std::min(begin + kRun, length); ++k) {
      for_each_vector<T>(
          width, [&](std::int64_t i, auto at) { at.store(run + i, at.load(run + i) + term(k, i, at)); });
    }
    for_each_vector<T>(
        width, [&](std::int64_t i, auto at) { at.store(sum + i, at.load(sum + i) + at.load(run + i)); });
  }
}

template <class T, class S>
void forward_columns(SoftmaxForm form, const S* x, S* y, std::int64_t width, const SoftmaxShape& shape) {
  alignas(64) T max[kWidth], sum[kWidth];
  const bool is_log = form == SoftmaxForm::log_softmax;
  std::fill_n(max, width, -std::numeric_limits<T>::infinity());
  for (std::int64_t k = 0; k < shape.length; ++k) {
    for_each_vector<T>(width, [&](std::int64_t i, auto at) {
      at.store(max + i,
               combine<ReduceOp::max, NanMode::skip>(at.load(max + i), at.load(x + k * shape.inner + i)));
    });
  }
  sum_columns(shape.length, width, sum, [&](std::int64_t k, std::int64_t i, auto at) {
    const std::int64_t place = k * shape.inner + i;
    const Vec<T> e = exp_for<S>(at.load(x + place) - at.load(max + i));
    if constexpr (std::is_same_v<S, T>) {
      if (!is_log) at.store(y + place, e);  // to be scaled below
    }
    return e;
  });
  for (std::int64_t i = 0; i < width; ++i) sum[i] = is_log ? vlog(sum[i]) : T(1) / sum[i];
  for (std::int64_t k = 0; k < shape.length; ++k) {
    for_each_vector<T>(width, [&](std::int64_t i, auto at) {
      const std::int64_t place = k * shape.inner + i;
      if (is_log) {
        at.store(y + place, (at.load(x + place) - at.load(max + i)) - at.load(sum + i));
      } else if constexpr (std::is_same_v<S, T>) {
        at.store(y + place, at.load(y + place) * at.load(sum + i));
      } else {
        at.store(y + place, exp_for<S>(at.load(x + place) - at.load(max + i)) * at.load(sum + i));
      }
    });
  }
}

template <class T, class S>
void backward_columns(SoftmaxForm form, const S* y, const S* dy, S* dx, std::int64_t width,
                      const SoftmaxShape& shape) {
  alignas(64) T sum[kWidth];
  const bool is_log = form == SoftmaxForm::log_softmax;
  sum_columns(shape.length, width, sum, [&](std::int64_t k, std::int64_t i, auto at) {
    const std::int64_t place = k * shape.inner + i;
    return is_log ? at.load(dy + place) : at.load(dy + place) * at.load(y + place);
  });
  for (std::int64_t k = 0; k < shape.length; ++k) {
    for_each_vector<T>(width, [&](std::int64_t i, auto at) {
      const std::int64_t place = k * shape.inner + i;
      const Vec<T> g = at.load(dy + place), v = at.load(y + place), s = at.load(sum + i);
      at.store(dx + place, is_log ? g - exp_for<S>(v) * s : v * (g - s));
    });
  }
}

// Calls row(begin) for every row, or columns(begin, width) for every tile of columns.
template <class Row, class Columns>
void for_each_slice(const SoftmaxShape& shape, Row row, Columns columns) {
  if (shape.length == 0) return;
  if (shape.inner == 1) {
    const std::int64_t grain = std::max<std::int64_t>(kGrain / shape.length, 1);
    parallel_for(0, shape.outer, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t o = begin; o < end; ++o) row(o * shape.length);
    });
    return;
  }
  const std::int64_t tiles = (shape.inner + kWidth - 1) / kWidth;
  const std::int64_t tile_elements = shape.length * std::min(shape.inner, kWidth);
  parallel_for(
      0, shape.outer * tiles, std::max<std::int64_t>(kGrain / std::max<std::int64_t>(tile_elements, 1), 1),
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t task = begin; task < end; ++task) {
          const std::int64_t first = task % tiles * kWidth;
          columns(task / tiles * shape.length * shape.inner + first, std::min(kWidth, shape.inner - first));
        }
      });
}

}  // namespace

void softmax(SoftmaxForm form, DType dtype, const void* x, void* y, const SoftmaxShape& shape) {
  dispatch_floating(dtype, "softmax", [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulate_t<S>;
    const S* in = static_cast<const S*>(x);
    S* out = static_cast<S*>(y);
    for_each_slice(
        shape, [&](std::int64_t begin) { forward_row<T>(form, in + begin, out + begin, shape.length); },
        [&](std::int64_t begin, std::int64_t width) {
          forward_columns<T>(form, in + begin, out + begin, width, shape);
        });
  });
}

void softmax_backward(SoftmaxForm form, DType dtype, const void* y, const void* dy, void* dx,
                      const SoftmaxShape& shape) {
  dispatch_floating(dtype, "softmax_backward", [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = accumulate_t<S>;
    const S *result = static_cast<const S*>(y), *grad = static_cast<const S*>(dy);
    S* out = static_cast<S*>(dx);
    for_each_slice(
        shape,
        [&](std::int64_t begin) {
          backward_row<T>(form, result + begin, grad + begin, out + begin, shape.length);
        },
        [&](std::int64_t begin, std::int64_t width) {
          backward_columns<T>(form, result + begin, grad + begin, out + begin, width, shape);
        });
  });
}

}  // namespace ergon::kernels::cpu
