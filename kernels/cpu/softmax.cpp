#include "kernels/softmax.h"

#include <algorithm>
#include <limits>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/block.h"
#include "kernels/cpu/row_reduce.h"
#include "kernels/cpu/vec_math.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kWidth = 128;   // columns that are worked on side by side
constexpr std::int64_t kRun = 32;      // elements of a column that are added up before they join the sum
constexpr std::int64_t kGrain = 4096;  // elements that a thread is worth waking for

// A contiguous tensor of any floating-point dtype, read and written in pieces of T.
template <class T>
struct Array {
  char* data;
  DType dtype;

  bool is_direct() const { return dtype == dtype_of<T>(); }
  Block piece(std::int64_t offset, std::int64_t n) const {
    return {.data = data + offset * size_of(dtype), .dtype = dtype, .cols = n};
  }
  const T* read(std::int64_t offset, std::int64_t n, T* buffer) const {
    return load(piece(offset, n), buffer);
  }
  // Where n results are to be computed, before write() puts them in place.
  T* target(std::int64_t offset, T* buffer) const {
    return is_direct() ? reinterpret_cast<T*>(data) + offset : buffer;
  }
  void write(std::int64_t offset, std::int64_t n, const T* values) const { store(values, piece(offset, n)); }
};

template <class F>
void for_each_piece(std::int64_t begin, std::int64_t length, F f) {
  for (std::int64_t i = 0; i < length; i += kBlockSize) f(begin + i, std::min(length - i, kBlockSize));
}

// y[i] = f(x[i])
template <class T, class F>
void transform(const T* x, T* y, std::int64_t n, F f) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

// y[i] = f(a[i], b[i])
template <class T, class F>
void transform(const T* a, const T* b, T* y, std::int64_t n, F f) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
}

// A NaN that is passed over here comes back from the exponentials.
template <class T>
T larger(T so_far, T x) {
  return combine<ReduceOp::max, NanMode::skip>(so_far, x);
}

// --- along the last dimension: one row from `begin` on ---

template <class T>
void forward_row(SoftmaxForm form, const Array<T>& x, const Array<T>& y, std::int64_t begin,
                 std::int64_t length) {
  alignas(64) T buffer[kBlockSize], values[kBlockSize];
  const T* row = nullptr;  // in one piece, or else the last one read
  const bool whole = length <= kBlockSize;
  T max = -std::numeric_limits<T>::infinity();
  for_each_piece(begin, length, [&](std::int64_t at, std::int64_t n) {
    row = x.read(at, n, buffer);
    max = larger(max, reduce_run<ReduceOp::max, NanMode::skip>(row, n));
  });
  const auto read = [&](std::int64_t at, std::int64_t n) { return whole ? row : x.read(at, n, buffer); };

  const bool is_log = form == SoftmaxForm::log_softmax;
  T sum = 0;
  for_each_piece(begin, length, [&](std::int64_t at, std::int64_t n) {
    T* exps = is_log ? values : y.target(at, values);
    transform(read(at, n), exps, n, [max](T v) { return vexp(v - max); });
    sum += reduce_run<ReduceOp::sum>(exps, n);
  });

  const T log_sum = is_log ? vlog(sum) : T(0), scale = T(1) / sum;
  const bool kept = y.is_direct() || whole;  // the exponentials are still there
  for_each_piece(begin, length, [&](std::int64_t at, std::int64_t n) {
    T* out = y.target(at, values);
    if (is_log) {
      transform(read(at, n), out, n, [=](T v) { return (v - max) - log_sum; });
    } else if (kept) {
      transform(out, out, n, [scale](T e) { return e * scale; });
    } else {
      transform(x.read(at, n, buffer), out, n, [=](T v) { return vexp(v - max) * scale; });
    }
    y.write(at, n, out);
  });
}

template <class T>
void backward_row(SoftmaxForm form, const Array<T>& y, const Array<T>& dy, const Array<T>& dx,
                  std::int64_t begin, std::int64_t length) {
  alignas(64) T y_buffer[kBlockSize], dy_buffer[kBlockSize], values[kBlockSize];
  const bool is_log = form == SoftmaxForm::log_softmax;
  T sum = 0;
  for_each_piece(begin, length, [&](std::int64_t at, std::int64_t n) {
    const T* terms = dy.read(at, n, dy_buffer);
    if (!is_log) {
      transform(terms, y.read(at, n, y_buffer), values, n, [](T g, T v) { return g * v; });
      terms = values;
    }
    sum += reduce_run<ReduceOp::sum>(terms, n);
  });
  for_each_piece(begin, length, [&](std::int64_t at, std::int64_t n) {
    const T *g = dy.read(at, n, dy_buffer), *v = y.read(at, n, y_buffer);
    T* out = dx.target(at, values);
    if (is_log) {
      transform(g, v, out, n, [sum](T grad, T log_p) { return grad - vexp(log_p) * sum; });
    } else {
      transform(g, v, out, n, [sum](T grad, T p) { return p * (grad - sum); });
    }
    dx.write(at, n, out);
  });
}

// --- along another dimension: `width` columns side by side, the first of them from `begin` on ---

// Adds term(k) (width values) over k, in runs.
template <class T, class Term>
void sum_columns(std::int64_t length, std::int64_t width, T* sum, Term term) {
  alignas(64) T run[kWidth];
  std::fill_n(sum, width, T(0));
  for (std::int64_t k = 0; k < length; k += kRun) {
    std::fill_n(run, width, T(0));
    for (std::int64_t j = k; j < std::min(k + kRun, length); ++j) {
      transform(run, term(j), run, width, [](T a, T b) { return a + b; });
    }
    transform(sum, run, sum, width, [](T a, T b) { return a + b; });
  }
}

template <class T>
void forward_columns(SoftmaxForm form, const Array<T>& x, const Array<T>& y, std::int64_t begin,
                     std::int64_t width, const SoftmaxShape& shape) {
  alignas(64) T buffer[kWidth], exps[kWidth], max[kWidth], sum[kWidth];
  const bool is_log = form == SoftmaxForm::log_softmax;
  const auto row = [&](std::int64_t k) { return x.read(begin + k * shape.inner, width, buffer); };
  std::fill_n(max, width, -std::numeric_limits<T>::infinity());
  for (std::int64_t k = 0; k < shape.length; ++k) {
    transform(max, row(k), max, width, [](T a, T b) { return larger(a, b); });
  }
  sum_columns(shape.length, width, sum, [&](std::int64_t k) {
    T* terms = is_log ? exps : y.target(begin + k * shape.inner, exps);
    transform(row(k), max, terms, width, [](T v, T m) { return vexp(v - m); });
    return terms;
  });
  transform(sum, sum, width, [is_log](T s) { return is_log ? vlog(s) : T(1) / s; });
  for (std::int64_t k = 0; k < shape.length; ++k) {
    const std::int64_t at = begin + k * shape.inner;
    T* out = y.target(at, exps);
    if (is_log) {
      transform(row(k), max, out, width, [](T v, T m) { return v - m; });
      transform(out, sum, out, width, [](T v, T log_sum) { return v - log_sum; });
    } else {
      if (!y.is_direct()) transform(row(k), max, out, width, [](T v, T m) { return vexp(v - m); });
      transform(out, sum, out, width, [](T e, T scale) { return e * scale; });
    }
    y.write(at, width, out);
  }
}

template <class T>
void backward_columns(SoftmaxForm form, const Array<T>& y, const Array<T>& dy, const Array<T>& dx,
                      std::int64_t begin, std::int64_t width, const SoftmaxShape& shape) {
  alignas(64) T y_buffer[kWidth], dy_buffer[kWidth], values[kWidth], sum[kWidth];
  const bool is_log = form == SoftmaxForm::log_softmax;
  sum_columns(shape.length, width, sum, [&](std::int64_t k) -> const T* {
    const T* g = dy.read(begin + k * shape.inner, width, dy_buffer);
    if (is_log) return g;
    transform(g, y.read(begin + k * shape.inner, width, y_buffer), values, width,
              [](T a, T b) { return a * b; });
    return values;
  });
  for (std::int64_t k = 0; k < shape.length; ++k) {
    const std::int64_t at = begin + k * shape.inner;
    const T *g = dy.read(at, width, dy_buffer), *v = y.read(at, width, y_buffer);
    T* out = dx.target(at, values);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      out[i] = is_log ? g[i] - vexp(v[i]) * sum[i] : v[i] * (g[i] - sum[i]);
    }
    dx.write(at, width, out);
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

template <class T>
Array<T> array(const void* data, DType dtype) {
  return {static_cast<char*>(const_cast<void*>(data)), dtype};
}

template <class F>
void dispatch_compute(DType dtype, F f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : f(TypeTag<float>{});
}

}  // namespace

void softmax(SoftmaxForm form, DType dtype, const void* x, void* y, const SoftmaxShape& shape) {
  dispatch_compute(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Array<T> in = array<T>(x, dtype), out = array<T>(y, dtype);
    for_each_slice(
        shape, [&](std::int64_t begin) { forward_row(form, in, out, begin, shape.length); },
        [&](std::int64_t begin, std::int64_t width) { forward_columns(form, in, out, begin, width, shape); });
  });
}

void softmax_backward(SoftmaxForm form, DType dtype, const void* y, const void* dy, void* dx,
                      const SoftmaxShape& shape) {
  dispatch_compute(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Array<T> result = array<T>(y, dtype), grad = array<T>(dy, dtype), out = array<T>(dx, dtype);
    for_each_slice(
        shape, [&](std::int64_t begin) { backward_row(form, result, grad, out, begin, shape.length); },
        [&](std::int64_t begin, std::int64_t width) {
          backward_columns(form, result, grad, out, begin, width, shape);
        });
  });
}

}  // namespace ergon::kernels::cpu
