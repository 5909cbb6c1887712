#include "kernels/batch_norm.h"

#include <cmath>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

// Image n, channel c of (batch, channels, positions).
template <class S, class Params, class Data>
auto plane(const Params& p, Data* data, std::int64_t n, std::int64_t c) {
  using Element = std::conditional_t<std::is_const_v<Data>, const S, S>;
  return static_cast<Element*>(data) + (n * p.channels + c) * p.positions;
}

// Calls f(TypeTag of the elements, channel).
template <class Params, class F>
void for_each_channel(const Params& p, F f) {
  dispatch_floating(p.dtype, "batch_norm", [&](auto tag) {
    parallel_for(0, p.channels, row_grain(p.batch * p.positions), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) f(tag, c);
    });
  });
}

template <class T>
T value_of(const void* values, std::int64_t channel, T missing) {
  return values == nullptr ? missing : static_cast<const T*>(values)[channel];
}

// running += momentum * (batch - running)
template <class T>
void move_towards(void* running, std::int64_t channel, double batch, double momentum) {
  if (running == nullptr) return;
  T& value = static_cast<T*>(running)[channel];
  value = static_cast<T>(static_cast<double>(value) + momentum * (batch - static_cast<double>(value)));
}

// S: what the elements are stored in.
template <class T, class S>
void forward_channel(const BatchNormForward& p, std::int64_t c) {
  T &mean = static_cast<T*>(p.mean)[c], &var = static_cast<T*>(p.var)[c];
  if (p.batch_statistics) {
    const double count = static_cast<double>(p.batch * p.positions);
    double sum = 0, square_sum = 0;
    for (std::int64_t n = 0; n < p.batch; ++n) {
      const S* x = plane<S>(p, p.x, n, c);
      VectorSum<T> values;
      for_each_vector<T>(p.positions, [&](std::int64_t i, auto at) { values.add(at, at.load(x + i)); });
      sum += static_cast<double>(values.total());
    }
    mean = static_cast<T>(sum / count);
    const T center = mean;
    for (std::int64_t n = 0; n < p.batch; ++n) {
      const S* x = plane<S>(p, p.x, n, c);
      VectorSum<T> squares;
      for_each_vector<T>(p.positions, [&](std::int64_t i, auto at) {
        const auto centered = at.load(x + i) - center;
        squares.add(at, centered * centered);
      });
      square_sum += static_cast<double>(squares.total());
    }
    var = static_cast<T>(square_sum / count);
    move_towards<T>(p.running_mean, c, static_cast<double>(mean), p.momentum);
    move_towards<T>(p.running_var, c, static_cast<double>(var) * (count / (count - 1)), p.momentum);
  }
  const T rstd = T(1) / std::sqrt(var + static_cast<T>(p.eps));
  static_cast<T*>(p.rstd)[c] = rstd;
  const T scale = rstd * value_of<T>(p.weight, c, 1), shift = value_of<T>(p.bias, c, 0), center = mean;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const S* x = plane<S>(p, p.x, n, c);
    S* y = plane<S>(p, p.y, n, c);
    for_each_vector<T>(p.positions, [&](std::int64_t i, auto at) {
      at.store(y + i, (at.load(x + i) - center) * scale + shift);
    });
  }
}

template <class T, class S>
void backward_channel(const BatchNormBackward& p, std::int64_t c) {
  const T mean = value_of<T>(p.mean, c, 0), rstd = value_of<T>(p.rstd, c, 1);
  double dout_sum = 0, product_sum = 0;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const S* dout = plane<S>(p, p.dout, n, c);
    const S* x = plane<S>(p, p.x, n, c);
    VectorSum<T> sum, products;
    for_each_vector<T>(p.positions, [&](std::int64_t i, auto at) {
      const auto grad = at.load(dout + i);
      sum.add(at, grad);
      products.add(at, grad * ((at.load(x + i) - mean) * rstd));
    });
    dout_sum += static_cast<double>(sum.total());
    product_sum += static_cast<double>(products.total());
  }
  static_cast<T*>(p.dbias)[c] = static_cast<T>(dout_sum);
  static_cast<T*>(p.dweight)[c] = static_cast<T>(product_sum);
  if (p.dx == nullptr) return;
  const double count = static_cast<double>(p.batch * p.positions);
  const T mean_dout = p.batch_statistics ? static_cast<T>(dout_sum / count) : T(0);
  const T mean_product = p.batch_statistics ? static_cast<T>(product_sum / count) : T(0);
  const T scale = rstd * value_of<T>(p.weight, c, 1), slope = rstd * mean_product;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const S* dout = plane<S>(p, p.dout, n, c);
    const S* x = plane<S>(p, p.x, n, c);
    S* dx = plane<S>(p, p.dx, n, c);
    for_each_vector<T>(p.positions, [&](std::int64_t i, auto at) {
      at.store(dx + i, scale * (at.load(dout + i) - mean_dout - (at.load(x + i) - mean) * slope));
    });
  }
}

}  // namespace

std::int64_t batch_norm_workspace(std::int64_t, std::int64_t, std::int64_t) { return 0; }

void batch_norm_forward(const BatchNormForward& p) {
  for_each_channel(p, [&](auto tag, std::int64_t c) {
    using S = typename decltype(tag)::type;
    forward_channel<accumulate_t<S>, S>(p, c);
  });
}

void batch_norm_backward(const BatchNormBackward& p) {
  for_each_channel(p, [&](auto tag, std::int64_t c) {
    using S = typename decltype(tag)::type;
    backward_channel<accumulate_t<S>, S>(p, c);
  });
}

}  // namespace ergon::kernels::cpu
