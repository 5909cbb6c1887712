#include "kernels/linear.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/convert.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kPanel =
    256;  // columns that one thread sums at a time: its buffers stay in the L1 cache
constexpr std::int64_t kBlockRows = 128;  // rows summed before they are added to the total

// dpre[c] = dout[c] * act'(pre[c])
template <class Acc>
void multiply_by_derivative(Activation activation, const Acc* __restrict dout, const Acc* __restrict pre,
                            Acc* __restrict dpre, std::int64_t n) {
  switch (activation) {
    case Activation::none:
      std::copy_n(dout, n, dpre);
      return;
    case Activation::relu:
      for (std::int64_t i = 0; i < n; ++i) dpre[i] = pre[i] > Acc(0) ? dout[i] : Acc(0);
      return;
    case Activation::gelu_tanh:
      for (std::int64_t i = 0; i < n; ++i) dpre[i] = dout[i] * gelu_tanh_grad(pre[i]);
      return;
    case Activation::gelu_erf:
      for (std::int64_t i = 0; i < n; ++i) dpre[i] = dout[i] * gelu_erf_grad(pre[i]);
      return;
    case Activation::silu:
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

template <class T>
void panel_backward(const BiasActivationBackward& p, std::int64_t first, std::int64_t width) {
  using Acc = accumulate_t<T>;
  std::array<Acc, kPanel> total{}, block{}, dout_buffer, pre_buffer, product;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    const std::int64_t at = r * p.cols + first;
    const Acc* row = widened(static_cast<const T*>(p.dout) + at, dout_buffer.data(), width);
    if (p.activation != Activation::none) {
      const Acc* pre = widened(static_cast<const T*>(p.pre) + at, pre_buffer.data(), width);
      multiply_by_derivative(p.activation, row, pre, product.data(), width);
      row = product.data();
    }
    for (std::int64_t c = 0; c < width; ++c) block[c] += row[c];
    if (p.dpre != nullptr) convert_run(row, static_cast<T*>(p.dpre) + at, width);
    if ((r + 1) % kBlockRows == 0 || r + 1 == p.rows) {
      for (std::int64_t c = 0; c < width; ++c) total[c] += std::exchange(block[c], Acc(0));
    }
  }
  if (p.dbias != nullptr) convert_run(total.data(), static_cast<T*>(p.dbias) + first, width);
}

}  // namespace

void bias_activation_backward(const BiasActivationBackward& p) {
  if (p.cols == 0) return;
  // Narrow enough for every thread to have one, wide enough for whole cache lines; the sums do not depend on
  // it.
  const std::int64_t share = (p.cols + num_threads() - 1) / num_threads();
  const std::int64_t panel = std::clamp<std::int64_t>((share + 15) / 16 * 16, 16, kPanel);
  const std::int64_t panels = (p.cols + panel - 1) / panel;
  dispatch_floating(p.dtype, "bias_activation_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(0, panels, std::max<std::int64_t>(16384 / std::max<std::int64_t>(p.rows * panel, 1), 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t i = begin; i < end; ++i) {
                     panel_backward<T>(p, i * panel, std::min(panel, p.cols - i * panel));
                   }
                 });
  });
}

}  // namespace ergon::kernels::cpu
