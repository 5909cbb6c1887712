#include "kernels/linear.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "core/convert.h"
#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/workspace.h"

namespace ergon::kernels::cpu {
namespace {

// One task: along the rows, as memory lies, with its sums in the L1 cache.
constexpr std::int64_t kBlockRows = 32;
constexpr std::int64_t kBlockCols = 2048;
constexpr std::int64_t kRun = 256;  // columns at a time in registers and small buffers

thread_local Workspace sums_workspace;  // of all threads of the team that this thread starts

// dpre[c] = dout[c] * act'(pre[c]); dpre may be pre
template <class Acc>
void multiply_by_derivative(Activation activation, const Acc* dout, const Acc* pre, Acc* dpre,
                            std::int64_t n) {
  switch (activation) {
    case Activation::none:
      std::copy_n(dout, n, dpre);
      return;
    case Activation::relu:
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) dpre[i] = pre[i] > Acc(0) ? dout[i] : Acc(0);
      return;
    case Activation::gelu_tanh:
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) dpre[i] = dout[i] * gelu_tanh_grad(pre[i]);
      return;
    case Activation::gelu_erf:
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) dpre[i] = dout[i] * gelu_erf_grad(pre[i]);
      return;
    case Activation::silu:
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) dpre[i] = dout[i] * silu_grad(pre[i]);
      return;
  }
}

// n elements in the arithmetic type: where they lie, or converted into `buffer`.
template <class Acc, class T>
const Acc* widened(const T* x, Acc* buffer, std::int64_t n) {
  if constexpr (std::is_same_v<T, Acc>) {
    return x;
  } else {
    convert_run(x, buffer, n);
    return buffer;
  }
}

// Rows [r0, r1), columns [c0, c1); `sums` (cols) of these rows alone, null when there is no dbias.
template <class T>
void block_backward(const BiasActivationBackward& p, std::int64_t r0, std::int64_t r1, std::int64_t c0,
                    std::int64_t c1, accumulate_t<T>* sums) {
  using Acc = accumulate_t<T>;
  std::array<Acc, kRun> dout_buffer, pre_buffer, product;
  if (sums != nullptr) std::fill(sums + c0, sums + c1, Acc(0));
  for (std::int64_t r = r0; r < r1; ++r) {
    for (std::int64_t c = c0; c < c1; c += kRun) {
      const std::int64_t at = r * p.cols + c, n = std::min(kRun, c1 - c);
      T* const dpre = p.dpre == nullptr ? nullptr : static_cast<T*>(p.dpre) + at;
      const Acc* row = widened(static_cast<const T*>(p.dout) + at, dout_buffer.data(), n);
      if (p.activation != Activation::none) {
        const Acc* pre = widened(static_cast<const T*>(p.pre) + at, pre_buffer.data(), n);
        Acc* target = product.data();
        if constexpr (std::is_same_v<T, Acc>)
          if (dpre != nullptr) target = dpre;
        multiply_by_derivative(p.activation, row, pre, target, n);
        row = target;
      }
      for (std::int64_t i = 0; sums != nullptr && i < n; ++i) sums[c + i] += row[i];
      if (dpre != nullptr && static_cast<const void*>(row) != dpre) convert_run(row, dpre, n);
    }
  }
}

template <class T>
void backward(const BiasActivationBackward& p) {
  using Acc = accumulate_t<T>;
  const std::int64_t row_blocks = (p.rows + kBlockRows - 1) / kBlockRows;
  const std::int64_t col_blocks = (p.cols + kBlockCols - 1) / kBlockCols;
  Acc* sums = p.dbias == nullptr ? nullptr : sums_workspace.reserve<Acc>(row_blocks * p.cols);
  const std::int64_t block = std::min(kBlockRows, p.rows) * std::min(kBlockCols, p.cols);
  parallel_for(0, row_blocks * col_blocks, 16384 / std::max<std::int64_t>(block, 1) + 1,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   const std::int64_t r = i / col_blocks, c0 = i % col_blocks * kBlockCols;
                   block_backward<T>(p, r * kBlockRows, std::min(p.rows, (r + 1) * kBlockRows), c0,
                                     std::min(p.cols, c0 + kBlockCols),
                                     sums == nullptr ? nullptr : sums + r * p.cols);
                 }
               });
  if (sums == nullptr) return;
  const auto add_up = [&](auto* dbias, std::int64_t begin, std::int64_t end) {
    std::array<Acc, kRun> total;
    for (std::int64_t c = begin; c < end; c += kRun) {
      const std::int64_t n = std::min(kRun, end - c);
      std::fill_n(total.data(), n, Acc(0));
      for (std::int64_t r = 0; r < row_blocks; ++r) {
        for (std::int64_t i = 0; i < n; ++i) total[static_cast<std::size_t>(i)] += sums[r * p.cols + c + i];
      }
      convert_run(total.data(), dbias + c, n);
    }
  };
  parallel_for(0, p.cols, 16384 / (row_blocks + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    if (p.dbias_dtype == p.dtype) return add_up(static_cast<T*>(p.dbias), begin, end);
    add_up(static_cast<Acc*>(p.dbias), begin, end);
  });
}

}  // namespace

void bias_activation_backward(const BiasActivationBackward& p) {
  if (p.cols == 0) return;
  dispatch_floating(p.dtype, "bias_activation_backward",
                    [&](auto tag) { backward<typename decltype(tag)::type>(p); });
}

}  // namespace ergon::kernels::cpu
