#include "kernels/norm.h"

#include <cmath>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/row_reduce.h"
#include "kernels/cpu/rows.h"

namespace ergon::kernels::cpu {
namespace {

template <class T>
T mean_square(const T* x, T center, std::int64_t n) {
  const T sum = sum_of<T>(n, [&](std::int64_t i) { return (x[i] - center) * (x[i] - center); });
  return sum / static_cast<T>(n);
}

template <class T, bool kCentered>
void forward_rows(const NormForwardParams& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = p.cols;
  const bool add = p.residual.data != nullptr;
  RowReader<T> xs(p.x, cols), residuals(p.residual, add ? cols : 0), stored_sums(p.sum, add ? cols : 0);
  RowWriter<T> sums(p.sum, add ? cols : 0), ys(p.y, cols);
  RowReader<T> weights(p.weight, cols, 1), biases(p.bias, cols, 0);
  const T* weight = weights.row(0);
  const T* bias = biases.row(0);
  for (std::int64_t r = begin; r < end; ++r) {
    const T* x = xs.row(r);
    if (add) {
      const T* residual = residuals.row(r);
      T* sum = sums.row(r);
#pragma omp simd
      for (std::int64_t c = 0; c < cols; ++c) sum[c] = x[c] + residual[c];
      sums.finish(r);
      x = stored_sums.row(r);  // as rounded: what the backward will see
    }
    const T mean = kCentered ? reduce_run<ReduceOp::sum>(x, cols) / static_cast<T>(cols) : T(0);
    const T rstd = T(1) / std::sqrt(mean_square(x, mean, cols) + static_cast<T>(p.eps));
    T* y = ys.row(r);
#pragma omp simd
    for (std::int64_t c = 0; c < cols; ++c) y[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
    ys.finish(r);
    if (p.mean != nullptr) static_cast<T*>(p.mean)[r] = mean;
    if (p.rstd != nullptr) static_cast<T*>(p.rstd)[r] = rstd;
  }
}

// Rows of one chunk; dweight and dbias (cols) are overwritten with the chunk's share.
template <class T, bool kCentered>
class BackwardChunk {
 public:
  explicit BackwardChunk(const NormBackwardParams& p)
      : p_(p),
        douts_(p.dout, p.cols),
        dsums_(p.dsum, p.cols, 0),
        xs_(p.s, p.cols),
        weights_(p.weight, p.cols, 1),
        dxs_(p.dx, p.cols) {}

  void run(std::int64_t begin, std::int64_t end, T* dweight, T* dbias) {
    std::fill_n(dweight, p_.cols, T(0));
    std::fill_n(dbias, p_.cols, T(0));
    for (std::int64_t r = begin; r < end; ++r) row(r, dweight, dbias);
  }

 private:
  void row(std::int64_t r, T* dweight, T* dbias) {
    const std::int64_t cols = p_.cols;
    const T* dout = douts_.row(r);
    const T* dsum = dsums_.row(r);
    const T* x = xs_.row(r);
    const T* weight = weights_.row(0);
    const T mean = kCentered ? static_cast<const T*>(p_.mean)[r] : T(0);
    const T rstd = static_cast<const T*>(p_.rstd)[r];
    const T sum_gx = sum_of<T>(cols, [&](std::int64_t c) {
      const T xhat = (x[c] - mean) * rstd;
      dweight[c] += dout[c] * xhat;
      if constexpr (kCentered) dbias[c] += dout[c];
      return dout[c] * weight[c] * xhat;
    });
    const T sum_g = kCentered ? sum_of<T>(cols, [&](std::int64_t c) { return dout[c] * weight[c]; }) : T(0);
    const T mean_g = sum_g / static_cast<T>(cols);
    const T mean_gx = sum_gx / static_cast<T>(cols);
    T* dx = dxs_.row(r);
#pragma omp simd
    for (std::int64_t c = 0; c < cols; ++c) {
      const T xhat = (x[c] - mean) * rstd;
      dx[c] = rstd * (dout[c] * weight[c] - mean_g - xhat * mean_gx) + dsum[c];
    }
    dxs_.finish(r);
  }

  const NormBackwardParams& p_;
  RowReader<T> douts_, dsums_, xs_, weights_;
  RowWriter<T> dxs_;
};

// dweight and dbias from the chunks' shares, (chunks, 2, cols).
template <class T>
void sum_chunks(const NormBackwardParams& p, std::int64_t chunks) {
  constexpr std::int64_t kBlock = 256;
  const T* partials = static_cast<const T*>(p.workspace);
  const std::int64_t blocks = (p.cols + kBlock - 1) / kBlock;
  parallel_for(0, blocks, row_grain(kBlock * chunks * 2), [&](std::int64_t begin, std::int64_t end) {
    T sum[kBlock];
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t first = block * kBlock, count = std::min(kBlock, p.cols - first);
      for (int which = 0; which < 2; ++which) {
        const RowMatrix& target = which == 0 ? p.dweight : p.dbias;
        if (target.data == nullptr) continue;
        std::fill_n(sum, kBlock, T(0));
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
          const T* share = partials + (2 * chunk + which) * p.cols + first;
#pragma omp simd
          for (std::int64_t c = 0; c < count; ++c) sum[c] += share[c];
        }
        store(sum, block_of(target, 0, first, count));
      }
    }
  });
}

template <class T, bool kCentered>
void backward(const NormBackwardParams& p) {
  const std::int64_t chunk_rows = norm_backward_chunk_rows(p.rows, kNormBackwardChunks);
  const std::int64_t chunks = (p.rows + chunk_rows - 1) / chunk_rows;
  T* partials = static_cast<T*>(p.workspace);
  const std::int64_t grain = row_grain(p.cols * chunk_rows);
  parallel_for(0, chunks, grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> unwanted(partials == nullptr ? static_cast<std::size_t>(2 * p.cols) : 0);
    BackwardChunk<T, kCentered> worker(p);
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      T* share = partials == nullptr ? unwanted.data() : partials + 2 * chunk * p.cols;
      worker.run(chunk * chunk_rows, std::min(p.rows, (chunk + 1) * chunk_rows), share, share + p.cols);
    }
  });
  if (partials != nullptr) sum_chunks<T>(p, chunks);
}

template <bool kCentered>
void forward(const NormForwardParams& p) {
  parallel_for(0, p.rows, row_grain(p.cols), [&](std::int64_t begin, std::int64_t end) {
    p.x.dtype == DType::f64 ? forward_rows<double, kCentered>(p, begin, end)
                            : forward_rows<float, kCentered>(p, begin, end);
  });
}

template <bool kCentered>
void backward(const NormBackwardParams& p) {
  p.s.dtype == DType::f64 ? backward<double, kCentered>(p) : backward<float, kCentered>(p);
}

}  // namespace

void layer_norm_forward(const NormForwardParams& params) { forward<true>(params); }
void layer_norm_backward(const NormBackwardParams& params) { backward<true>(params); }
void rms_norm_forward(const NormForwardParams& params) { forward<false>(params); }
void rms_norm_backward(const NormBackwardParams& params) { backward<false>(params); }

}  // namespace ergon::kernels::cpu
