#include "kernels/norm.h"

#include <cmath>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

// T: what is computed in. S: what rows are stored in; T too if they are of several dtypes, by way of buffers.
template <class T, class S, bool kCentered>
void forward_rows(const NormForwardParams& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = p.cols;
  const bool add = p.residual.data != nullptr;
  RowReader<S> xs(p.x, cols), residuals(p.residual, add ? cols : 0), stored_sums(p.sum, add ? cols : 0);
  RowWriter<S> sums(p.sum, add ? cols : 0), ys(p.y, cols);
  RowReader<T> weights(p.weight, cols, 1), biases(p.bias, cols, 0);
  const T* weight = weights.row(0);
  const T* bias = biases.row(0);
  for (std::int64_t r = begin; r < end; ++r) {
    const S* x = xs.row(r);
    if (add) {
      const S* residual = residuals.row(r);
      S* sum = sums.row(r);
      for_each_vector<T>(
          cols, [&](std::int64_t c, auto at) { at.store(sum + c, at.load(x + c) + at.load(residual + c)); });
      sums.finish(r);
      x = stored_sums.row(r);  // as rounded: what the backward will see
    }
    T mean = 0;
    if (kCentered) {
      VectorSum<T> sum;
      for_each_vector<T>(cols, [&](std::int64_t c, auto at) { sum.add(at, at.load(x + c)); });
      mean = sum.total() / static_cast<T>(cols);
    }
    VectorSum<T> squares;
    for_each_vector<T>(cols, [&](std::int64_t c, auto at) {
      const auto centered = at.load(x + c) - mean;
      squares.add(at, centered * centered);
    });
    const T rstd = T(1) / std::sqrt(squares.total() / static_cast<T>(cols) + static_cast<T>(p.eps));
    S* y = ys.row(r);
    for_each_vector<T>(cols, [&](std::int64_t c, auto at) {
      at.store(y + c, (at.load(x + c) - mean) * rstd * at.load(weight + c) + at.load(bias + c));
    });
    ys.finish(r);
    if (p.mean != nullptr) static_cast<T*>(p.mean)[r] = mean;
    if (p.rstd != nullptr) static_cast<T*>(p.rstd)[r] = rstd;
  }
}

// Rows of one chunk; dweight and dbias (cols) are overwritten with the chunk's share.
template <class T, class S, bool kCentered>
class BackwardChunk {
 public:
  explicit BackwardChunk(const NormBackwardParams& p)
      : p_(p),
        douts_(p.dout, p.cols),
        dsums_(p.dsum, p.cols, S(0)),
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
    const S* dout = douts_.row(r);
    const S* dsum = dsums_.row(r);
    const S* x = xs_.row(r);
    const T* weight = weights_.row(0);
    const T mean = kCentered ? static_cast<const T*>(p_.mean)[r] : T(0);
    const T rstd = static_cast<const T*>(p_.rstd)[r];
    VectorSum<T> sum_g, sum_gx;
    for_each_vector<T>(cols, [&](std::int64_t c, auto at) {
      const auto grad = at.load(dout + c), xhat = (at.load(x + c) - mean) * rstd,
                 g = grad * at.load(weight + c);
      at.store(dweight + c, at.load(dweight + c) + grad * xhat);
      if constexpr (kCentered) {
        at.store(dbias + c, at.load(dbias + c) + grad);
        sum_g.add(at, g);
      }
      sum_gx.add(at, g * xhat);
    });
    const T mean_g = sum_g.total() / static_cast<T>(cols);
    const T mean_gx = sum_gx.total() / static_cast<T>(cols);
    S* dx = dxs_.row(r);
    for_each_vector<T>(cols, [&](std::int64_t c, auto at) {
      const auto xhat = (at.load(x + c) - mean) * rstd;
      at.store(dx + c, rstd * (at.load(dout + c) * at.load(weight + c) - mean_g - xhat * mean_gx)
                           + at.load(dsum + c));
    });
    dxs_.finish(r);
  }

  const NormBackwardParams& p_;
  RowReader<S> douts_, dsums_, xs_;
  RowReader<T> weights_;
  RowWriter<S> dxs_;
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

template <class T, class S, bool kCentered>
void backward(const NormBackwardParams& p) {
  const std::int64_t chunk_rows = norm_backward_chunk_rows(p.rows, kNormBackwardChunks);
  const std::int64_t chunks = (p.rows + chunk_rows - 1) / chunk_rows;
  T* partials = static_cast<T*>(p.workspace);
  const std::int64_t grain = row_grain(p.cols * chunk_rows);
  parallel_for(0, chunks, grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> unwanted(partials == nullptr ? static_cast<std::size_t>(2 * p.cols) : 0);
    BackwardChunk<T, S, kCentered> worker(p);
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      T* share = partials == nullptr ? unwanted.data() : partials + 2 * chunk * p.cols;
      worker.run(chunk * chunk_rows, std::min(p.rows, (chunk + 1) * chunk_rows), share, share + p.cols);
    }
  });
  if (partials != nullptr) sum_chunks<T>(p, chunks);
}

template <bool kCentered>
void forward(const NormForwardParams& p) {
  dispatch_rows({p.x, p.residual, p.sum, p.y}, [&](auto compute, auto storage) {
    using T = typename decltype(compute)::type;
    using S = typename decltype(storage)::type;
    parallel_for(0, p.rows, row_grain(p.cols),
                 [&](std::int64_t begin, std::int64_t end) { forward_rows<T, S, kCentered>(p, begin, end); });
  });
}

template <bool kCentered>
void backward(const NormBackwardParams& p) {
  dispatch_rows({p.dout, p.dsum, p.s, p.dx}, [&](auto compute, auto storage) {
    backward<typename decltype(compute)::type, typename decltype(storage)::type, kCentered>(p);
  });
}

}  // namespace

void layer_norm_forward(const NormForwardParams& params) { forward<true>(params); }
void layer_norm_backward(const NormBackwardParams& params) { backward<true>(params); }
void rms_norm_forward(const NormForwardParams& params) { forward<false>(params); }
void rms_norm_backward(const NormBackwardParams& params) { backward<false>(params); }

}  // namespace ergon::kernels::cpu
