#include "kernels/batch_norm.h"

#include <cmath>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/row_reduce.h"
#include "kernels/cpu/rows.h"

namespace ergon::kernels::cpu {
namespace {

// (batch, channels, positions) as batch * channels rows.
template <class Params>
RowMatrix planes(const Params& p, const void* data) {
  return {const_cast<void*>(data), p.dtype, p.positions};
}

template <class T>
T squares(const T* x, T center, std::int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += (x[i] - center) * (x[i] - center);
  return sum;
}

template <class T>
T at(const void* values, std::int64_t channel, T missing) {
  return values == nullptr ? missing : static_cast<const T*>(values)[channel];
}

// running += momentum * (batch - running)
template <class T>
void move_towards(void* running, std::int64_t channel, double batch, double momentum) {
  if (running == nullptr) return;
  T& value = static_cast<T*>(running)[channel];
  value = static_cast<T>(static_cast<double>(value) + momentum * (batch - static_cast<double>(value)));
}

template <class T>
void forward_channel(const BatchNormForward& p, RowReader<T>& xs, RowWriter<T>& ys, std::int64_t c) {
  T &mean = static_cast<T*>(p.mean)[c], &var = static_cast<T*>(p.var)[c];
  if (p.batch_statistics) {
    const double count = static_cast<double>(p.batch * p.positions);
    double sum = 0, square_sum = 0;
    for (std::int64_t n = 0; n < p.batch; ++n) {
      sum += static_cast<double>(reduce_run<ReduceOp::sum>(xs.row(n * p.channels + c), p.positions));
    }
    mean = static_cast<T>(sum / count);
    for (std::int64_t n = 0; n < p.batch; ++n) {
      square_sum += static_cast<double>(squares(xs.row(n * p.channels + c), mean, p.positions));
    }
    var = static_cast<T>(square_sum / count);
    move_towards<T>(p.running_mean, c, static_cast<double>(mean), p.momentum);
    move_towards<T>(p.running_var, c, static_cast<double>(var) * (count / (count - 1)), p.momentum);
  }
  const T rstd = T(1) / std::sqrt(var + static_cast<T>(p.eps));
  static_cast<T*>(p.rstd)[c] = rstd;
  const T scale = rstd * at<T>(p.weight, c, 1), shift = at<T>(p.bias, c, 0), center = mean;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const std::int64_t row = n * p.channels + c;
    const T* x = xs.row(row);
    T* y = ys.row(row);
#pragma omp simd
    for (std::int64_t i = 0; i < p.positions; ++i) y[i] = (x[i] - center) * scale + shift;
    ys.finish(row);
  }
}

template <class T>
void backward_channel(const BatchNormBackward& p, RowReader<T>& douts, RowReader<T>& xs, RowWriter<T>& dxs,
                      std::int64_t c) {
  const T mean = at<T>(p.mean, c, 0), rstd = at<T>(p.rstd, c, 1);
  double dout_sum = 0, product_sum = 0;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const T* dout = douts.row(n * p.channels + c);
    const T* x = xs.row(n * p.channels + c);
    T sum = 0, products = 0;
#pragma omp simd reduction(+ : sum, products)
    for (std::int64_t i = 0; i < p.positions; ++i) {
      sum += dout[i];
      products += dout[i] * ((x[i] - mean) * rstd);
    }
    dout_sum += static_cast<double>(sum);
    product_sum += static_cast<double>(products);
  }
  static_cast<T*>(p.dbias)[c] = static_cast<T>(dout_sum);
  static_cast<T*>(p.dweight)[c] = static_cast<T>(product_sum);
  if (p.dx == nullptr) return;
  const double count = static_cast<double>(p.batch * p.positions);
  const T mean_dout = p.batch_statistics ? static_cast<T>(dout_sum / count) : T(0);
  const T mean_product = p.batch_statistics ? static_cast<T>(product_sum / count) : T(0);
  const T scale = rstd * at<T>(p.weight, c, 1), slope = rstd * mean_product;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const std::int64_t row = n * p.channels + c;
    const T* dout = douts.row(row);
    const T* x = xs.row(row);
    T* dx = dxs.row(row);
#pragma omp simd
    for (std::int64_t i = 0; i < p.positions; ++i) {
      dx[i] = scale * (dout[i] - mean_dout - (x[i] - mean) * slope);
    }
    dxs.finish(row);
  }
}

template <class T>
void forward(const BatchNormForward& p) {
  parallel_for(0, p.channels, row_grain(p.batch * p.positions), [&](std::int64_t begin, std::int64_t end) {
    RowReader<T> xs(planes(p, p.x), p.positions);
    RowWriter<T> ys(planes(p, p.y), p.positions);
    for (std::int64_t c = begin; c < end; ++c) forward_channel(p, xs, ys, c);
  });
}

template <class T>
void backward(const BatchNormBackward& p) {
  parallel_for(0, p.channels, row_grain(p.batch * p.positions), [&](std::int64_t begin, std::int64_t end) {
    RowReader<T> douts(planes(p, p.dout), p.positions), xs(planes(p, p.x), p.positions);
    RowWriter<T> dxs(planes(p, p.dx), p.positions);
    for (std::int64_t c = begin; c < end; ++c) backward_channel(p, douts, xs, dxs, c);
  });
}

}  // namespace

std::int64_t batch_norm_workspace(std::int64_t, std::int64_t, std::int64_t) { return 0; }

void batch_norm_forward(const BatchNormForward& params) {
  params.dtype == DType::f64 ? forward<double>(params) : forward<float>(params);
}

void batch_norm_backward(const BatchNormBackward& params) {
  params.dtype == DType::f64 ? backward<double>(params) : backward<float>(params);
}

}  // namespace ergon::kernels::cpu
