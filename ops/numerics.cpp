#include "ops/numerics.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/autograd.h"
#include "kernels/numerics.h"
#include "ops/dispatch.h"

namespace ergon::ops {
namespace {

constexpr std::size_t kWords = sizeof(kernels::NumericsCounts) / sizeof(std::int64_t);

}  // namespace

NumericsCounter::NumericsCounter(std::int64_t slots, DType target, Device device)
    : smallest_(target == DType::f16 ? 0x1p-14f : 0x1p-126f),
      largest_(target == DType::f16 ? 65504.f : 0x1.fep127f),
      counts_(zeros({slots, static_cast<std::int64_t>(kWords)}, {DType::i64, device})) {
  ERGON_CHECK(is_half(target), "[numerics] dtype {}: expected bf16 or f16", name_of(target));
}

void NumericsCounter::add(std::int64_t slot, const Tensor& x_in) {
  OpScope scope("numerics", x_in, counts_);
  ERGON_CHECK(is_floating_point(x_in.dtype()), "[numerics] dtype {}: expected floating point",
              name_of(x_in.dtype()));
  NoGradGuard no_grad;
  const Tensor x = x_in.contiguous();
  auto* counts = static_cast<kernels::NumericsCounts*>(counts_.data_ptr()) + slot;
  ERGON_KERNEL(x.device(), numerics,
               {.numel = x.numel(),
                .dtype = x.dtype(),
                .x = x.data_ptr(),
                .smallest = smallest_,
                .largest = largest_,
                .counts = counts});
}

std::vector<NumericsSummary> NumericsCounter::take() {
  const std::vector<std::int64_t> words = counts_.to_vector<std::int64_t>();
  counts_.zero_();
  std::vector<NumericsSummary> summaries(words.size() / kWords);
  for (std::size_t slot = 0; slot < summaries.size(); ++slot) {
    kernels::NumericsCounts c;
    std::memcpy(static_cast<void*>(&c), words.data() + slot * kWords, sizeof(c));
    const auto share = [total = static_cast<double>(std::max<std::int64_t>(c.nonzero, 1))](
                           std::int64_t count) { return static_cast<double>(count) / total; };
    summaries[slot] = {.amax = std::bit_cast<float>(static_cast<std::uint32_t>(c.amax_bits)),
                       .underflow = share(c.underflow),
                       .overflow = share(c.overflow),
                       .infinite = c.infinite,
                       .nan = c.nan};
  }
  return summaries;
}

}  // namespace ergon::ops
