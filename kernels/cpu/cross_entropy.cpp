#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/convert.h"
#include "core/error.h"
#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/half_math.h"
#include "kernels/cpu/row_reduce.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kGrain = 4096;  // elements; an exp costs more than a copy
constexpr std::int64_t kBlock = 1024;  // columns that are added up in T
constexpr std::int64_t kReach = 256;   // columns ahead of which the target's logit is read

template <class Params>
std::int64_t target_of(const Params& p, std::int64_t r) {
  return p.target_dtype == DType::i32 ? static_cast<const std::int32_t*>(p.targets)[r]
                                      : static_cast<const std::int64_t*>(p.targets)[r];
}

template <class S>
S* row_of(const RowMatrix& matrix, std::int64_t r) {
  return static_cast<S*>(matrix.data) + r * matrix.stride;
}

struct RowSums {
  double lse;
  double total;  // of the logits; only if wanted
};

// sum_c exp(x[c]) as exp(max) * sum, one block of columns after the other.
template <class T, class S>
RowSums row_sums(const S* x, std::int64_t cols, bool want_total) {
  T max = -std::numeric_limits<T>::infinity();
  double sum = 0, total = 0;
  for (std::int64_t c = 0; c < cols; c += kBlock) {
    const std::int64_t count = std::min(kBlock, cols - c);
    const T old_max = max;
    max =
        std::max(max, reduce_run<ReduceOp::max, NanMode::skip>(x + c, count));  // NaN: the sums will have it
    const T shift = max == -std::numeric_limits<T>::infinity() ? T(0) : max;    // no number above -inf so far
    if (sum != 0 && max > old_max) sum *= std::exp(static_cast<double>(old_max - shift));
    VectorSum<T> exps;
    for_each_vector<T>(
        count, [&](std::int64_t i, auto at) { exps.add(at, exp_for<S>(at.load(x + c + i) - shift)); });
    sum += exps.total();
    if (want_total) total += reduce_run<ReduceOp::sum>(x + c, count);
  }
  const double shift = max == -std::numeric_limits<T>::infinity() ? 0 : max;
  return {shift + std::log(sum), total};
}

template <class T, class S>
void forward_row(const CrossEntropyParams& p, std::int64_t r) {
  const std::int64_t target = target_of(p, r);
  double lse = 0, loss = 0;
  if (target != p.ignore_index) {
    const S* x = row_of<const S>(p.logits, r);
    const RowSums sums = row_sums<T>(x, p.cols, p.smoothing != 0);
    lse = sums.lse;
    loss = lse - (1 - p.smoothing) * convert<T>(x[target]);
    if (p.smoothing != 0) loss -= p.smoothing * sums.total / static_cast<double>(p.cols);
  }
  if (p.lse != nullptr) static_cast<T*>(p.lse)[r] = static_cast<T>(lse);
  if (p.loss != nullptr) static_cast<T*>(p.loss)[r] = static_cast<T>(loss);
}

// S: what logits are stored in, D: their gradients.
template <class T, class S, class D>
void backward_row(const CrossEntropyParams& p, std::int64_t r) {
  const std::int64_t target = target_of(p, r);
  const S* x = row_of<const S>(p.logits, r);
  D* dx = row_of<D>(p.dlogits, r);
  if (target == p.ignore_index) {
    std::fill_n(dx, p.cols, D(0));
    return;
  }
  const T dloss = p.dloss == nullptr ? T(1) : static_cast<const T*>(p.dloss)[r * p.dloss_stride];
  const T scale = (p.weight == nullptr ? T(1) : *static_cast<const T*>(p.weight)) * dloss;
  const T lse = static_cast<const T*>(p.lse)[r];
  const T spread = static_cast<T>(p.smoothing / static_cast<double>(p.cols));
  const T hit = static_cast<T>(1 - p.smoothing);
  const auto gradient = [&](Vec<T> logits) { return (exp_for<D>(logits - lse) - spread) * scale; };
  for (std::int64_t c = 0; c < p.cols; c += kReach) {
    const std::int64_t count = std::min(kReach, p.cols - c);
    const bool has_target = target >= c && target < c + count;
    const T logit = has_target ? convert<T>(x[target]) : T(0);  // before the loop: dx may be x
    for_each_vector<T>(count,
                       [&](std::int64_t i, auto at) { at.store(dx + c + i, gradient(at.load(x + c + i))); });
    if (has_target) dx[target] = convert<D>(gradient(Vec<T>{} + logit)[0] - hit * scale);
  }
}

// Calls f(r) for every row.
template <class F>
void for_each_row(const CrossEntropyParams& p, F f) {
  parallel_for(0, p.rows, row_grain(p.cols, kGrain), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) f(r);
  });
}

}  // namespace

void cross_entropy_forward(const CrossEntropyParams& p) {
  dispatch_floating(p.logits.dtype, "cross_entropy", [&](auto tag) {
    using S = typename decltype(tag)::type;
    for_each_row(p, [&](std::int64_t r) { forward_row<accumulate_t<S>, S>(p, r); });
  });
}

void cross_entropy_backward(const CrossEntropyParams& p) {
  dispatch_floating(p.logits.dtype, "cross_entropy", [&](auto logits_tag) {
    dispatch_floating(p.dlogits.dtype, "cross_entropy", [&](auto gradient_tag) {
      using S = typename decltype(logits_tag)::type;
      using D = typename decltype(gradient_tag)::type;
      using T = accumulate_t<S>;
      if constexpr (std::is_same_v<T, accumulate_t<D>>) {
        for_each_row(p, [&](std::int64_t r) { backward_row<T, S, D>(p, r); });
      } else {
        ERGON_INTERNAL_ASSERT(false);
      }
    });
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
