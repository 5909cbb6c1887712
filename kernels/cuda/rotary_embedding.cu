// kernels/rotary_embedding.h on CUDA: a thread keeps the cosines and sines of kWidth pairs and turns those of
// all heads.

#include "core/cuda/index_fault.h"
#include "core/cuda/strided.cuh"
#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/rotary_embedding.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 128;

// Neighbours; a single pair need not be aligned.
template <int kPairs, class T>
__device__ __forceinline__ Vector<T, 2 * kPairs> load_pairs(const T* from) {
  if constexpr (kPairs > 1) {
    return load<2 * kPairs>(from);
  } else {
    return {from[0], from[1]};
  }
}
template <class T, int kElements>
__device__ __forceinline__ void store_pairs(T* to, const Vector<T, kElements>& pairs) {
  if constexpr (kElements > 2) {
    store(to, pairs);
  } else {
    to[0] = pairs[0], to[1] = pairs[1];
  }
}

// Slots: groups of kWidth pairs of a position. Of pairs (i, i + half) the two sides are vectors of kWidth;
// of interleaved ones a slot is a vector of 2 * kWidth.
template <class T, int kWidth, bool kInterleaved>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(RotaryParams p, FastDivisor slots, FastDivisor seqlen, std::uint32_t total,
                  ergon::detail::IndexFault* fault) {
  using Acc = accumulate_t<T>;
  const std::uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= total) return;
  const std::uint32_t row = slots.divide(index);  // b * seqlen + t
  const std::int64_t first = (index - row * slots.divisor) * kWidth, half = p.head_dim / 2;
  const std::int64_t b = seqlen.divide(row), t = row - b * seqlen.divisor;
  std::int64_t position = p.offset + t;
  if (p.positions != nullptr) {
    const std::int64_t at = b * p.position_stride + t;
    position = p.positions[at];
    if (position < 0 || position >= p.position_limit) {
      raise_index_fault(fault, "[rotary_embedding] position", position, 0, p.position_limit, at);
      position = 0;
    }
  }
  const Acc* table = static_cast<const Acc*>(p.table) + position * p.head_dim + first;
  const auto cosines = load<kWidth>(table);
  auto sines = load<kWidth>(table + half);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sines[i] = p.inverse ? -sines[i] : sines[i];

  const T* x = static_cast<const T*>(p.x) + b * p.batch_stride + t * p.seqlen_stride;
  T* y = static_cast<T*>(p.y) + row * p.num_heads * p.head_dim;
#pragma unroll 4
  for (std::int64_t head = 0; head < p.num_heads; ++head) {
    const T* from = x + head * p.head_stride;
    T* to = y + head * p.head_dim;
    if constexpr (kInterleaved) {
      auto pairs = convert_vector<Acc>(load_pairs<kWidth>(from + 2 * first));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const Acc left = pairs[2 * i], right = pairs[2 * i + 1];
        pairs[2 * i] = left * cosines[i] - right * sines[i];
        pairs[2 * i + 1] = right * cosines[i] + left * sines[i];
      }
      store_pairs(to + 2 * first, convert_vector<T>(pairs));
    } else {
      auto lefts = convert_vector<Acc>(load<kWidth>(from + first));
      auto rights = convert_vector<Acc>(load<kWidth>(from + first + half));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const Acc left = lefts[i], right = rights[i];
        lefts[i] = left * cosines[i] - right * sines[i];
        rights[i] = right * cosines[i] + left * sines[i];
      }
      store(to + first, convert_vector<T>(lefts));
      store(to + first + half, convert_vector<T>(rights));
    }
  }
}

// Do `pairs` pairs and `width` elements make aligned vectors everywhere?
bool fits(const RotaryParams& p, std::int64_t pairs, std::int64_t width, std::int64_t element_size) {
  return p.head_dim / 2 % pairs == 0 && p.batch_stride % width == 0 && p.seqlen_stride % width == 0
         && p.head_stride % width == 0 && aligned_to(p.x, width * element_size)
         && aligned_to(p.y, width * element_size);
}

template <class T, bool kInterleaved>
void launch(const RotaryParams& p) {
  const auto with_width = [&](auto width) {
    const std::int64_t slots = p.head_dim / 2 / width, total = p.batch * p.seqlen * slots;
    ERGON_CHECK(total < std::int64_t{1} << 31,
                "[rotary_embedding] {} positions of {} pairs on cuda: expected fewer than 2^31 in all",
                p.batch * p.seqlen, p.head_dim / 2);
    rotary_kernel<T, decltype(width)::value, kInterleaved>
        <<<static_cast<unsigned>((total + kThreads - 1) / kThreads), kThreads, 0, stream()>>>(
            p, FastDivisor(slots), FastDivisor(p.seqlen), static_cast<std::uint32_t>(total),
            ergon::detail::index_fault());
    CUDA_CHECK_LAUNCH();
  };
  // At most 16 bytes a load, of x and of the table.
  constexpr int kWidth = kInterleaved ? kVectorWidth<T> / 2 : kVectorWidth<accumulate_t<T>>;
  if (fits(p, kWidth, kInterleaved ? 2 * kWidth : kWidth, sizeof(T))) {
    with_width(std::integral_constant<int, kWidth>{});
  } else {
    with_width(std::integral_constant<int, 1>{});
  }
}

}  // namespace

void rotary_embedding(const RotaryParams& p) {
  if (p.batch * p.seqlen * p.num_heads * p.head_dim == 0) return;
  dispatch_floating(p.dtype, "rotary_embedding", [&](auto tag) {
    using T = typename decltype(tag)::type;
    p.interleaved ? launch<T, true>(p) : launch<T, false>(p);
  });
}

}  // namespace ergon::kernels::cuda
