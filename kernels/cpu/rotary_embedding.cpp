#include "kernels/rotary_embedding.h"

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

template <class T, class S>
void rotate_halves(const S* x, S* y, const T* cosines, const T* sines, T sign, std::int64_t half) {
  for_each_vector<T>(half, [&](std::int64_t i, auto at) {
    const auto c = at.load(cosines + i), s = at.load(sines + i) * sign, low = at.load(x + i),
               high = at.load(x + i + half);
    at.store(y + i, low * c - high * s);
    at.store(y + i + half, high * c + low * s);
  });
}

template <class T, class S>
void rotate_neighbours(const S* x, S* y, const T* cosines, const T* sines, T sign, std::int64_t half) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const T c = cosines[i], s = sign * sines[i], even = convert<T>(x[2 * i]), odd = convert<T>(x[2 * i + 1]);
    y[2 * i] = convert<S>(even * c - odd * s);
    y[2 * i + 1] = convert<S>(odd * c + even * s);
  }
}

template <class T, class S>
void rotate(const RotaryParams& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t half = p.head_dim / 2;
  const T sign = p.inverse ? T(-1) : T(1);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t b = row / p.seqlen, t = row % p.seqlen;
    const std::int64_t position =
        p.positions == nullptr ? p.offset + t : p.positions[b * p.position_stride + t];
    const T* cosines = static_cast<const T*>(p.table) + position * 2 * half;
    const S* x = static_cast<const S*>(p.x) + b * p.batch_stride + t * p.seqlen_stride;
    S* y = static_cast<S*>(p.y) + row * p.num_heads * p.head_dim;
    for (std::int64_t h = 0; h < p.num_heads; ++h, x += p.head_stride, y += p.head_dim) {
      p.interleaved ? rotate_neighbours(x, y, cosines, cosines + half, sign, half)
                    : rotate_halves(x, y, cosines, cosines + half, sign, half);
    }
  }
}

}  // namespace

void rotary_embedding(const RotaryParams& p) {
  dispatch_floating(p.dtype, "rotary_embedding", [&](auto tag) {
    using S = typename decltype(tag)::type;
    parallel_for(0, p.batch * p.seqlen, row_grain(p.num_heads * p.head_dim),
                 [&](std::int64_t begin, std::int64_t end) { rotate<accumulate_t<S>, S>(p, begin, end); });
  });
}

}  // namespace ergon::kernels::cpu
