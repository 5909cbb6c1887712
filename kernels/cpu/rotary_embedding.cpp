#include "kernels/rotary_embedding.h"

#include <vector>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"

namespace ergon::kernels::cpu {
namespace {

template <class T>
void rotate_halves(const T* x, T* y, const T* cosines, const T* sines, T sign, std::int64_t half) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const T s = sign * sines[i];
    y[i] = x[i] * cosines[i] - x[i + half] * s;
    y[i + half] = x[i + half] * cosines[i] + x[i] * s;
  }
}

template <class T>
void rotate_neighbours(const T* x, T* y, const T* cosines, const T* sines, T sign, std::int64_t half) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const T s = sign * sines[i];
    y[2 * i] = x[2 * i] * cosines[i] - x[2 * i + 1] * s;
    y[2 * i + 1] = x[2 * i + 1] * cosines[i] + x[2 * i] * s;
  }
}

template <class T>
void rotate(const RotaryParams& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t width = p.num_heads * p.head_dim, half = p.head_dim / 2;
  std::vector<T> in(static_cast<std::size_t>(width)), out(p.dtype == dtype_of<T>() ? 0 : in.size());
  const T sign = p.inverse ? T(-1) : T(1);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t b = row / p.seqlen, t = row % p.seqlen;
    const std::int64_t position =
        p.positions == nullptr ? p.offset + t : p.positions[b * p.position_stride + t];
    const T* cosines = static_cast<const T*>(p.table) + position * 2 * half;
    const std::int64_t offset = b * p.batch_stride + t * p.seqlen_stride;
    const T* x = load(Block{.data = static_cast<char*>(const_cast<void*>(p.x)) + offset * size_of(p.dtype),
                            .dtype = p.dtype,
                            .rows = p.num_heads,
                            .cols = p.head_dim,
                            .row_stride = p.head_stride},
                      in.data());
    const Block target{
        .data = static_cast<char*>(p.y) + row * width * size_of(p.dtype), .dtype = p.dtype, .cols = width};
    T* y = out.empty() ? static_cast<T*>(target.data) : out.data();
    for (std::int64_t h = 0; h < width; h += p.head_dim) {
      p.interleaved ? rotate_neighbours(x + h, y + h, cosines, cosines + half, sign, half)
                    : rotate_halves(x + h, y + h, cosines, cosines + half, sign, half);
    }
    store(y, target);
  }
}

}  // namespace

void rotary_embedding(const RotaryParams& p) {
  parallel_for(0, p.batch * p.seqlen, row_grain(p.num_heads * p.head_dim),
               [&](std::int64_t begin, std::int64_t end) {
                 p.dtype == DType::f64 ? rotate<double>(p, begin, end) : rotate<float>(p, begin, end);
               });
}

}  // namespace ergon::kernels::cpu
