#include "kernels/dropout.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/block.h"
#include "kernels/cpu/philox.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kGrain = 8;  // blocks of kBlockSize elements

template <class T>
void drop_block(const DropoutParams& p, std::int64_t first) {
  const std::int64_t count = std::min(kBlockSize, p.numel - first);
  std::uint32_t words[kBlockSize];
  for (std::int64_t i = 0; i < count; i += 64) {
    philox_words(p.stream.seed, p.stream.offset + static_cast<std::uint64_t>((first + i) / 4), words + i);
  }
  const auto block_at = [&](const void* data) {
    char* address = static_cast<char*>(const_cast<void*>(data)) + first * size_of(p.dtype);
    return Block{.data = address, .dtype = p.dtype, .cols = count};
  };
  T in[kBlockSize], out[kBlockSize];
  const T* x = load(block_at(p.x), in);
  T* y = p.dtype == dtype_of<T>() ? static_cast<T*>(block_at(p.y).data) : out;
  // uniform_from_bits(word) = (word >> 8) / 2^24, compared without rounding p. Signed: SSE and AVX2 compare
  // those.
  const auto threshold = static_cast<std::int32_t>(std::ceil(p.p * 0x1p24));
  const T scale = static_cast<T>(1 / (1 - p.p));
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    y[i] = static_cast<std::int32_t>(words[i] >> 8) >= threshold ? x[i] * scale : T(0);
  }
  store(y, block_at(p.y));
}

}  // namespace

void dropout(const DropoutParams& p) {
  const std::int64_t blocks = (p.numel + kBlockSize - 1) / kBlockSize;
  parallel_for(0, blocks, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      p.dtype == DType::f64 ? drop_block<double>(p, block * kBlockSize)
                            : drop_block<float>(p, block * kBlockSize);
    }
  });
}

}  // namespace ergon::kernels::cpu
