#include "kernels/swiglu.h"

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec_math.h"

namespace ergon::kernels::cpu {
namespace {

// Where to compute a piece of an output: in place, or in `buffer` for store() to round.
template <class T>
T* target(const Block& block, T* buffer) {
  return block.dtype == dtype_of<T>() ? static_cast<T*>(block.data) : buffer;
}

template <class T>
void forward_piece(const SwigluParams& p, std::int64_t r, std::int64_t col, std::int64_t cols) {
  T gate_buffer[kBlockSize], up_buffer[kBlockSize], y_buffer[kBlockSize];
  const T* gate = load(block_of(p.gate, r, col, cols), gate_buffer);
  const T* up = load(block_of(p.up, r, col, cols), up_buffer);
  const Block out = block_of(p.y, r, col, cols);
  T* y = target(out, y_buffer);
#pragma omp simd
  for (std::int64_t c = 0; c < cols; ++c) y[c] = gate[c] * vsigmoid(gate[c]) * up[c];
  store(y, out);
}

template <class T>
void backward_piece(const SwigluParams& p, std::int64_t r, std::int64_t col, std::int64_t cols) {
  T gate_buffer[kBlockSize], up_buffer[kBlockSize], dout_buffer[kBlockSize];
  T dgate_buffer[kBlockSize], dup_buffer[kBlockSize];
  const T* gate = load(block_of(p.gate, r, col, cols), gate_buffer);
  const T* up = load(block_of(p.up, r, col, cols), up_buffer);
  const T* dout = load(block_of(p.dout, r, col, cols), dout_buffer);
  const Block dgate_block = block_of(p.dgate, r, col, cols), dup_block = block_of(p.dup, r, col, cols);
  T* dgate = target(dgate_block, dgate_buffer);
  T* dup = target(dup_block, dup_buffer);
#pragma omp simd
  for (std::int64_t c = 0; c < cols; ++c) {
    const T g = gate[c], d = dout[c], s = vsigmoid(g);
    const T dg = d * up[c] * (s * (T(1) + g * (T(1) - s)));
    dup[c] = d * (g * s);
    dgate[c] = dg;
  }
  store(dgate, dgate_block);
  store(dup, dup_block);
}

// Calls piece(r, col, cols) for pieces of at most kBlockSize columns.
template <class F>
void for_each_piece(std::int64_t rows, std::int64_t cols, F&& piece) {
  const std::int64_t pieces = (cols + kBlockSize - 1) / kBlockSize;
  const std::int64_t grain = row_grain(std::min(cols, kBlockSize), kRowGrain / 2);
  parallel_for(0, rows * pieces, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t col = i % pieces * kBlockSize;
      piece(i / pieces, col, std::min(kBlockSize, cols - col));
    }
  });
}

// Dense operands are one long row.
SwigluParams merged(SwigluParams p) {
  for (const RowMatrix* matrix : {&p.gate, &p.up, &p.y, &p.dout, &p.dgate, &p.dup}) {
    if (matrix->data != nullptr && matrix->stride != p.cols) return p;
  }
  p.cols *= p.rows;
  p.rows = 1;
  return p;
}

}  // namespace

void swiglu_forward(const SwigluParams& params) {
  const SwigluParams p = merged(params);
  for_each_piece(p.rows, p.cols, [&](std::int64_t r, std::int64_t col, std::int64_t cols) {
    p.gate.dtype == DType::f64 ? forward_piece<double>(p, r, col, cols)
                               : forward_piece<float>(p, r, col, cols);
  });
}

void swiglu_backward(const SwigluParams& params) {
  const SwigluParams p = merged(params);
  for_each_piece(p.rows, p.cols, [&](std::int64_t r, std::int64_t col, std::int64_t cols) {
    p.gate.dtype == DType::f64 ? backward_piece<double>(p, r, col, cols)
                               : backward_piece<float>(p, r, col, cols);
  });
}

}  // namespace ergon::kernels::cpu
