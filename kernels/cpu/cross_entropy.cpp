#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec_math.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kGrain = 4096;  // elements; an exp costs more than a copy

template <class Params>
std::int64_t target_of(const Params& p, std::int64_t r) {
  return p.target_dtype == DType::i32 ? static_cast<const std::int32_t*>(p.targets)[r]
                                      : static_cast<const std::int64_t*>(p.targets)[r];
}

template <class T>
T element(const RowMatrix& matrix, std::int64_t r, std::int64_t c) {
  T buffer;
  return *load(block_of(matrix, r, c, 1), &buffer);
}

template <class T>
T max_of(const T* x, std::int64_t n) {  // passes over NaN: the sums will have it
  T max = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : max)
  for (std::int64_t i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

template <class T>
T sum_of(const T* x, std::int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

template <class T>
T sum_of_exp(const T* x, T shift, std::int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += vexp(x[i] - shift);
  return sum;
}

struct RowSums {
  double lse;
  double total;  // of the logits; only if wanted
};

// sum_c exp(x[c]) as exp(max) * sum, one block of columns after the other.
template <class T>
RowSums row_sums(const CrossEntropyParams& p, std::int64_t r, bool want_total) {
  T buffer[kBlockSize];
  T max = -std::numeric_limits<T>::infinity();
  double sum = 0, total = 0;
  for (std::int64_t c = 0; c < p.cols; c += kBlockSize) {
    const std::int64_t count = std::min(kBlockSize, p.cols - c);
    const T* x = load(block_of(p.logits, r, c, count), buffer);
    const T old_max = max;
    max = std::max(max, max_of(x, count));
    const T shift = max == -std::numeric_limits<T>::infinity() ? T(0) : max;  // no number above -inf so far
    if (sum != 0 && max > old_max) sum *= std::exp(static_cast<double>(old_max - shift));
    sum += sum_of_exp(x, shift, count);
    if (want_total) total += sum_of(x, count);
  }
  const double shift = max == -std::numeric_limits<T>::infinity() ? 0 : max;
  return {shift + std::log(sum), total};
}

template <class T>
void forward_row(const CrossEntropyParams& p, std::int64_t r) {
  const std::int64_t target = target_of(p, r);
  double lse = 0, loss = 0;
  if (target != p.ignore_index) {
    const RowSums sums = row_sums<T>(p, r, p.smoothing != 0);
    lse = sums.lse;
    loss = lse - (1 - p.smoothing) * element<T>(p.logits, r, target);
    if (p.smoothing != 0) loss -= p.smoothing * sums.total / static_cast<double>(p.cols);
  }
  if (p.lse != nullptr) static_cast<T*>(p.lse)[r] = static_cast<T>(lse);
  if (p.loss != nullptr) static_cast<T*>(p.loss)[r] = static_cast<T>(loss);
}

template <class T>
void backward_row(const CrossEntropyParams& p, std::int64_t r) {
  const std::int64_t target = target_of(p, r);
  const T dloss = p.dloss == nullptr ? T(1) : static_cast<const T*>(p.dloss)[r * p.dloss_stride];
  const T scale = (p.weight == nullptr ? T(1) : *static_cast<const T*>(p.weight)) * dloss;
  const T lse = static_cast<const T*>(p.lse)[r];
  const T spread = static_cast<T>(p.smoothing / static_cast<double>(p.cols));
  const T hit = static_cast<T>(1 - p.smoothing);
  T in_buffer[kBlockSize], out_buffer[kBlockSize];
  for (std::int64_t c = 0; c < p.cols; c += kBlockSize) {
    const std::int64_t count = std::min(kBlockSize, p.cols - c);
    const Block out = block_of(p.dlogits, r, c, count);
    T* dx = out.dtype == dtype_of<T>() ? static_cast<T*>(out.data) : out_buffer;
    if (target == p.ignore_index) {
      std::fill_n(dx, count, T(0));
    } else {
      const T* x = load(block_of(p.logits, r, c, count), in_buffer);
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) dx[i] = (vexp(x[i] - lse) - spread) * scale;
      if (target >= c && target < c + count) dx[target - c] -= hit * scale;
    }
    store(dx, out);
  }
}

}  // namespace

void cross_entropy_forward(const CrossEntropyParams& p) {
  parallel_for(0, p.rows, row_grain(p.cols, kGrain), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      p.logits.dtype == DType::f64 ? forward_row<double>(p, r) : forward_row<float>(p, r);
    }
  });
}

void cross_entropy_backward(const CrossEntropyParams& p) {
  parallel_for(0, p.rows, row_grain(p.cols, kGrain), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      p.logits.dtype == DType::f64 ? backward_row<double>(p, r) : backward_row<float>(p, r);
    }
  });
}

void target_weight(const TargetWeightParams& p) {
  std::int64_t counted = 0;
  for (std::int64_t r = 0; r < p.rows; ++r) counted += target_of(p, r) != p.ignore_index;
  dispatch_floating(p.dtype, "target_weight", [&](auto tag) {
    using T = typename decltype(tag)::type;
    *static_cast<T*>(p.weight) = static_cast<T>(1 / static_cast<double>(counted));
  });
}

void total_loss(const TotalLossParams& p) {
  dispatch_floating(p.dtype, "total_loss", [&](auto tag) {
    using T = typename decltype(tag)::type;
    double sum = 0;
    for (std::int64_t r = 0; r < p.rows; ++r) sum += static_cast<double>(static_cast<const T*>(p.loss)[r]);
    if (p.weight != nullptr) sum *= static_cast<double>(*static_cast<const T*>(p.weight));
    *static_cast<T*>(p.total) = static_cast<T>(sum);
  });
}

}  // namespace ergon::kernels::cpu
