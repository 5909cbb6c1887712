#include "kernels/optimizer.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/half.h"
#include "kernels/cpu/block.h"
#include "kernels/cpu/optimizer_chunks.h"
#include "kernels/cpu/philox.h"
#include "kernels/dynamic_code.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kRow = kCodeBlock;  // elements that are updated at a time

// bits[i] = values[i] as bf16, up or down at random so that the mean is exact. `words`: as many as values,
// rounded up to 64.
void round_stochastically(const float* values, const std::uint32_t* words, std::uint16_t* bits,
                          std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const auto exact = std::bit_cast<std::uint32_t>(values[i]);
    const bool finite = (exact & 0x7f800000) != 0x7f800000;
    bits[i] =
        static_cast<std::uint16_t>((finite ? exact + (words[i] >> 16) : exact | (exact & 0xffff)) >> 16);
  }
}

// The codes' values times their blocks' scale.
template <bool kSigned>
void decode(const std::uint8_t* codes, float scale, float* values, std::int64_t n) {
  static constexpr auto kValues = DynamicCode<kSigned>::values();
  for (std::int64_t i = 0; i < n; ++i) values[i] = kValues[codes[i]] * scale;
}

template <bool kSigned>
void encode(const float* values, std::uint8_t* codes, float& scale, std::int64_t n) {
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
  float sum = 0;  // NaN where a value is, which comparisons lose
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += values[i] * 0.0f;
  scale = largest + sum;
  const float divisor = scale > 0 ? scale : 1;
  for (std::int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<std::uint8_t>(DynamicCode<kSigned>::encode(values[i] / divisor));
  }
}

// The rows of a chunk's arrays: brought into Acc, updated, and stored again.
template <class Acc>
class ChunkRows {
 public:
  ChunkRows(const OptimizerStep& step, std::int64_t number, const Chunk& chunk)
      : step_(step), number_(number), chunk_(chunk), t_(*chunk.tensor) {}

  // update(param, grad, state0, state1, n)
  template <class Update>
  void for_each(Update&& update) {
    for (std::int64_t at = 0; at < chunk_.count; at += kRow) {
      const std::int64_t n = std::min(kRow, chunk_.count - at);
      const Block param = block(t_.param, t_.dtype, at, n);
      Acc* p = t_.master != nullptr ? static_cast<Acc*>(chunk_.address(t_.master, dtype_of<Acc>(), at))
                                    : in_place(param, buffers_[0]);
      const Acc* g = load(block(t_.grad, t_.dtype, at, n), buffers_[1]);
      Acc* states[2] = {load_state<0>(at, n), load_state<1>(at, n)};
      update(p, g, states[0], states[1], n);
      store_state<0>(states[0], at, n);
      store_state<1>(states[1], at, n);
      store_rounded(p, param, t_.stochastic, at, 0);
    }
  }

 private:
  Block block(const void* array, DType dtype, std::int64_t at, std::int64_t n) const {
    return {.data = chunk_.address(array, dtype, at), .dtype = dtype, .cols = n};
  }
  Acc* in_place(const Block& block, Acc* buffer) const { return const_cast<Acc*>(load(block, buffer)); }
  float& scale(int s, std::int64_t at) const { return t_.scales[s][(chunk_.first + at) / kCodeBlock]; }

  template <int kState>
  Acc* load_state(std::int64_t at, std::int64_t n) {
    if (t_.states[kState] == nullptr) return nullptr;
    const Block state = block(t_.states[kState], t_.state_dtype, at, n);
    Acc* buffer = buffers_[2 + kState];
    if constexpr (std::is_same_v<Acc, float>) {
      if (t_.state_dtype == DType::u8) {
        decode<kState == 0>(static_cast<const std::uint8_t*>(state.data), scale(kState, at), buffer, n);
        return buffer;
      }
    }
    return in_place(state, buffer);
  }

  template <int kState>
  void store_state(const Acc* values, std::int64_t at, std::int64_t n) {
    if (values == nullptr) return;
    const Block state = block(t_.states[kState], t_.state_dtype, at, n);
    if constexpr (std::is_same_v<Acc, float>) {
      if (t_.state_dtype == DType::u8) {
        return encode<kState == 0>(values, static_cast<std::uint8_t*>(state.data), scale(kState, at), n);
      }
    }
    store_rounded(values, state, state.dtype == DType::bf16, at, 1 + kState);
  }

  // `which`: the number of the array, for its random numbers.
  void store_rounded(const Acc* values, const Block& to, bool stochastic, std::int64_t at,
                     std::uint32_t which) {
    if constexpr (std::is_same_v<Acc, float>) {
      if (stochastic) {
        const std::uint64_t stream =
            std::uint64_t{4 * t_.number + which} << 32 | static_cast<std::uint32_t>(number_);
        for (std::int64_t i = 0; i < to.cols; i += 64) {
          philox_words(step_.seed, static_cast<std::uint64_t>(chunk_.first + at + i) / 4, words_ + i, stream);
        }
        return round_stochastically(values, words_, static_cast<std::uint16_t*>(to.data), to.cols);
      }
    }
    store(values, to);
  }

  const OptimizerStep& step_;
  std::int64_t number_;
  const Chunk& chunk_;
  const OptimizerTensor& t_;
  Acc buffers_[4][kRow];
  std::uint32_t words_[kRow];
};

template <class Acc>
void adamw_chunk(const OptimizerStep& s, const AdamWConstants& c, double grad_scale, std::int64_t number,
                 const Chunk& chunk) {
  const double correction1 = 1 - std::pow(c.beta1, static_cast<double>(number));
  const double correction2 = 1 - std::pow(c.beta2, static_cast<double>(number));
  const Acc scale = Acc(grad_scale), decay = Acc(1 - chunk.tensor->lr * chunk.tensor->weight_decay);
  const Acc rate = Acc(chunk.tensor->lr / correction1), root = Acc(1 / std::sqrt(correction2)),
            eps = Acc(c.eps);
  const Acc keep1 = Acc(c.beta1), keep2 = Acc(c.beta2), take1 = Acc(1 - c.beta1), take2 = Acc(1 - c.beta2);
  ChunkRows<Acc>(s, number, chunk)
      .for_each([&](Acc* __restrict param, const Acc* __restrict grad, Acc* __restrict exp_avg,
                    Acc* __restrict exp_avg_sq, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) {
          const Acc g = grad[i] * scale;
          const Acc m = keep1 * exp_avg[i] + take1 * g;
          const Acc v = keep2 * exp_avg_sq[i] + take2 * g * g;
          exp_avg[i] = m;
          exp_avg_sq[i] = v;
          param[i] = param[i] * decay - rate * m / (std::sqrt(v) * root + eps);
        }
      });
}

template <class Acc>
void sgd_chunk(const OptimizerStep& s, const SgdConstants& c, double grad_scale, std::int64_t number,
               const Chunk& chunk) {
  const bool first = number == 1;
  const Acc scale = Acc(grad_scale), decay = Acc(chunk.tensor->weight_decay), rate = Acc(chunk.tensor->lr);
  const Acc momentum = Acc(c.momentum), keep = Acc(first ? 0 : c.momentum),
            take = Acc(first ? 1 : 1 - c.dampening);
  ChunkRows<Acc>(s, number, chunk)
      .for_each([&](Acc* __restrict param, const Acc* __restrict grad, Acc* __restrict buffer, Acc*,
                    std::int64_t n) {
        if (buffer == nullptr) {
          for (std::int64_t i = 0; i < n; ++i) param[i] -= rate * (grad[i] * scale + decay * param[i]);
          return;
        }
        for (std::int64_t i = 0; i < n; ++i) {
          const Acc g = grad[i] * scale + decay * param[i];
          const Acc b = keep * buffer[i] + take * g;
          buffer[i] = b;
          param[i] -= rate * (c.nesterov ? g + momentum * b : b);
        }
      });
}

// f(grad_scale, step number, chunk) for all chunks, unless the step is to be skipped.
template <class F>
void make_step(const OptimizerStep& s, F&& f) {
  if (s.found_inf != nullptr && *s.found_inf != 0) {
    ++*s.skipped;
    return;
  }
  const double grad_scale = s.grad_scale * (s.grad_factor != nullptr ? double(*s.grad_factor) : 1);
  const std::int64_t number = s.step - (s.skipped != nullptr ? *s.skipped : 0);
  for_each_chunk(s.tensors, [&](std::int64_t, const Chunk& chunk) { f(grad_scale, number, chunk); });
}

}  // namespace

void adamw_step(const OptimizerStep& step, const AdamWConstants& constants) {
  make_step(step, [&](double grad_scale, std::int64_t number, const Chunk& chunk) {
    chunk.tensor->dtype == DType::f64 ? adamw_chunk<double>(step, constants, grad_scale, number, chunk)
                                      : adamw_chunk<float>(step, constants, grad_scale, number, chunk);
  });
}

void sgd_step(const OptimizerStep& step, const SgdConstants& constants) {
  make_step(step, [&](double grad_scale, std::int64_t number, const Chunk& chunk) {
    chunk.tensor->dtype == DType::f64 ? sgd_chunk<double>(step, constants, grad_scale, number, chunk)
                                      : sgd_chunk<float>(step, constants, grad_scale, number, chunk);
  });
}

}  // namespace ergon::kernels::cpu
