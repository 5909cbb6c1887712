#include "kernels/dropout.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kBlock = 1024;  // elements whose random words are drawn at once
constexpr std::int64_t kGrain = 8;     // blocks

typedef std::int32_t SignedWords __attribute__((vector_size(kVectorBytes)));

template <class S>
void drop_block(const DropoutParams& p, std::int64_t first) {
  using T = accumulate_t<S>;
  const std::int64_t count = std::min(kBlock, p.numel - first);
  alignas(64) std::uint32_t words[kBlock];
  for (std::int64_t i = 0; i < count; i += 64) {
    philox_words(p.stream.seed, p.stream.offset + static_cast<std::uint64_t>((first + i) / 4), words + i);
  }
  const S* x = static_cast<const S*>(p.x) + first;
  S* y = static_cast<S*>(p.y) + first;
  // uniform_from_bits(word) = (word >> 8) / 2^24, compared without rounding p. Signed: SSE and AVX2 compare
  // those.
  const auto threshold = static_cast<std::int32_t>(std::ceil(p.p * 0x1p24));
  const T scale = static_cast<T>(1 / (1 - p.p));
  if constexpr (is_half(dtype_of<S>())) {
    for_each_vector<float>(count, [&](std::int64_t i, auto at) {
      Words word;
      std::memcpy(&word, words + i, sizeof word);  // of whole vectors, also at the end
      const auto draw = std::bit_cast<SignedWords>(word >> 8);
      at.store(y + i, draw >= threshold ? at.load(x + i) * scale : Vec<float>{});
    });
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      y[i] = static_cast<std::int32_t>(words[i] >> 8) >= threshold ? x[i] * scale : T(0);
    }
  }
}

}  // namespace

void dropout(const DropoutParams& p) {
  const std::int64_t blocks = (p.numel + kBlock - 1) / kBlock;
  dispatch_floating(p.dtype, "dropout", [&](auto tag) {
    parallel_for(0, blocks, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block) {
        drop_block<typename decltype(tag)::type>(p, block * kBlock);
      }
    });
  });
}

}  // namespace ergon::kernels::cpu
