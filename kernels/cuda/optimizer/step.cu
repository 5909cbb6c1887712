// kernels/optimizer.h on CUDA: a block takes a chunk of a tensor, a warp rows of it.

#include "core/random.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/optimizer/tensors.cuh"
#include "kernels/dynamic_code.h"

namespace ergon::kernels::cuda {
namespace {

__constant__ const std::array<float, 256> kSignedValues = DynamicCode<true>::values();
__constant__ const std::array<float, 256> kUnsignedValues = DynamicCode<false>::values();

// The values of the codes, where lanes read different ones at once.
struct CodeTables {
  float values[2][256];

  __device__ __forceinline__ void fill() {
    static_assert(kStepThreads == 256);
    values[0][threadIdx.x] = kSignedValues[threadIdx.x];
    values[1][threadIdx.x] = kUnsignedValues[threadIdx.x];
    __syncthreads();
  }
};

// value as bf16, up or down at random so that the mean is exact; the lower half of the result's bits is 0.
__device__ __forceinline__ float round_stochastically(float value, std::uint32_t word) {
  const std::uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value;
  return __uint_as_float((bits + (word >> 16)) & 0xffff0000u);
}

// Loads and stores of one tensor's rows, in whatever way it keeps them.
template <class Acc>
struct Storage {
  static constexpr int kElements = kLaneElements<Acc>;
  template <int kWidth>
  using Row = RowPart<kWidth, kElements>;

  const OptimizerTensor& t;
  const CodeTables& tables;
  std::uint64_t seed;
  std::int64_t number;  // of the step

  template <int kWidth>
  __device__ __forceinline__ void load(const Row<kWidth>& row, const void* array, DType dtype,
                                       Acc (&values)[kElements]) const {
    with_storage<Acc>(dtype,
                      [&](auto tag) { row.template load<typename decltype(tag)::type>(array, values); });
  }

  // `which`: the number of the array, for its random numbers.
  template <int kWidth>
  __device__ __forceinline__ void store(const Row<kWidth>& row, void* array, DType dtype, bool stochastic,
                                        std::uint32_t which, Acc (&values)[kElements]) const {
    if constexpr (std::is_same_v<Acc, float>) {
      if (stochastic) round_row(row, which, values);
    }
    with_storage<Acc>(dtype,
                      [&](auto tag) { row.template store<typename decltype(tag)::type>(array, values); });
  }

  template <int kWidth>
  __device__ __forceinline__ void round_row(const Row<kWidth>& row, std::uint32_t which,
                                            float (&values)[kElements]) const {
    const std::uint64_t stream =
        std::uint64_t{4 * t.number + which} << 32 | static_cast<std::uint32_t>(number);
#pragma unroll
    for (int k = 0; k < kElements; k += kWidth) {
      const auto element = static_cast<std::uint64_t>(row.first + row.position(k));
      const auto words = philox4x32(seed, element / 4, stream);
      if constexpr (kWidth == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) values[k + i] = round_stochastically(values[k + i], words[i]);
      } else {
        const auto word = element % 4 < 2 ? (element % 4 == 0 ? words[0] : words[1])
                                          : (element % 4 == 2 ? words[2] : words[3]);
        values[k] = round_stochastically(values[k], word);
      }
    }
  }

  template <int kState, int kWidth>
  __device__ __forceinline__ void load_state(const Row<kWidth>& row, Acc (&values)[kElements]) const {
    if constexpr (std::is_same_v<Acc, float>) {
      if (t.state_dtype == DType::u8) {
        int codes[kElements];
        row.template load<std::uint8_t>(t.states[kState], codes);
        const float scale = t.scales[kState][row.first / kCodeBlock];
#pragma unroll
        for (int k = 0; k < kElements; ++k) values[k] = tables.values[kState][codes[k]] * scale;
        return;
      }
    }
    load(row, t.states[kState], t.state_dtype, values);
  }

  template <int kState, int kWidth>
  __device__ __forceinline__ void store_state(const Row<kWidth>& row, Acc (&values)[kElements]) const {
    if constexpr (std::is_same_v<Acc, float>) {
      static_assert(kWarpSize * kElements == kCodeBlock);
      if (t.state_dtype == DType::u8) {
        float largest = 0;
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          if (row.has(k)) largest = Max()(largest, abs(values[k]));
        }
        largest = warp_reduce<Max>(largest);
        int codes[kElements];
        const float divisor = largest > 0 ? largest : 1;
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          codes[k] = DynamicCode<kState == 0>::encode(values[k] / divisor);
        }
        row.template store<std::uint8_t>(t.states[kState], codes);
        if (row.lane == 0) t.scales[kState][row.first / kCodeBlock] = largest;
        __syncwarp();  // or lane 0 may go on alone, and its accesses too
        return;
      }
    }
    store(row, t.states[kState], t.state_dtype, t.state_dtype == DType::bf16, 1 + kState, values);
  }
};

// Are vectors of four elements aligned in every array? Of 16 bytes for fp32, 8 for halves, 4 for codes.
__device__ __forceinline__ bool is_aligned(const OptimizerTensor& t) {
  const int half = t.dtype == DType::f32 ? 16 : 8;
  const int state = t.state_dtype == DType::f32 ? 16 : t.state_dtype == DType::u8 ? 4 : 8;
  return ((address_bits(t.param) | address_bits(t.grad)) % half
          + (address_bits(t.states[0]) | address_bits(t.states[1])) % state + address_bits(t.master) % 16)
         == 0;
}

template <class Rule, class Acc>
__device__ __forceinline__ void step_chunk(const Rule& rule, const OptimizerStep& s, const OptimizerTensor& t,
                                           const CodeTables& tables) {
  const std::int64_t number = s.step - (s.skipped != nullptr ? *s.skipped : 0);
  const double grad_scale = s.grad_scale * (s.grad_factor != nullptr ? *s.grad_factor : 1.0f);
  const typename Rule::template Of<Acc> update(rule, t, grad_scale, number);
  const Storage<Acc> storage{t, tables, s.seed, number};
  constexpr int kElements = kLaneElements<Acc>;
  for_each_row<Acc>(t, is_aligned(t), [&](const auto& row) {
    Acc param[kElements], grad[kElements], states[2][kElements];
    storage.load(row, t.master != nullptr ? t.master : t.param, t.master != nullptr ? DType::f32 : t.dtype,
                 param);
    storage.load(row, t.grad, t.dtype, grad);
    if constexpr (Rule::kStates > 0) storage.template load_state<0>(row, states[0]);
    if constexpr (Rule::kStates > 1) storage.template load_state<1>(row, states[1]);
#pragma unroll
    for (int k = 0; k < kElements; ++k) update(param[k], grad[k], states[0][k], states[1][k]);
    if constexpr (Rule::kStates > 0) storage.template store_state<0>(row, states[0]);
    if constexpr (Rule::kStates > 1) storage.template store_state<1>(row, states[1]);
    if (t.master != nullptr) row.template store<Acc>(t.master, param);
    storage.store(row, t.param, t.dtype, t.stochastic, 0, param);
  });
}

// Rule::Of<Acc>(rule, tensor, grad_scale, number)(param, grad, states) updates one element.
template <class Rule>
__global__ void __launch_bounds__(kStepThreads, 2) step_kernel(Rule rule, OptimizerStep s, int count) {
  if (s.found_inf != nullptr && *s.found_inf != 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) ++*s.skipped;  // no block of this launch reads it
    return;
  }
  __shared__ CodeTables tables;
  const OptimizerTensor t = tensor_of_block(s.tensors.device, count);
  if (t.state_dtype == DType::u8) tables.fill();
  if (t.dtype == DType::f64) {
    step_chunk<Rule, double>(rule, s, t, tables);
  } else {
    step_chunk<Rule, float>(rule, s, t, tables);
  }
}

struct AdamWRule {
  static constexpr int kStates = 2;
  double beta1, beta2, eps;
  double log_beta1, log_beta2;

  template <class Acc>
  struct Of {
    Acc scale, decay, rate, root, eps, keep1, keep2, take1, take2;

    __device__ Of(const AdamWRule& rule, const OptimizerTensor& t, double grad_scale, std::int64_t number)
        : scale(grad_scale),
          decay(1 - t.lr * t.weight_decay),
          rate(static_cast<Acc>(t.lr) / correction(rule.log_beta1, number)),
          root(1 / sqrt(correction(rule.log_beta2, number))),
          eps(rule.eps),
          keep1(rule.beta1),
          keep2(rule.beta2),
          take1(1 - rule.beta1),
          take2(1 - rule.beta2) {}
    // 1 - beta^number
    __device__ static Acc correction(double log_beta, std::int64_t number) {
      return -expm1(static_cast<Acc>(number) * static_cast<Acc>(log_beta));
    }
    __device__ __forceinline__ void operator()(Acc& param, Acc grad, Acc& exp_avg, Acc& exp_avg_sq) const {
      const Acc g = grad * scale;
      exp_avg = keep1 * exp_avg + take1 * g;
      exp_avg_sq = keep2 * exp_avg_sq + take2 * g * g;
      param = param * decay - rate * exp_avg / (sqrt(exp_avg_sq) * root + eps);
    }
  };
};

template <bool kMomentum>
struct SgdRule {
  static constexpr int kStates = kMomentum ? 1 : 0;
  double momentum, take;  // buffer = momentum * buffer + take * g after the first step
  bool nesterov;

  template <class Acc>
  struct Of {
    Acc scale, decay, rate, momentum, keep, take;
    bool nesterov;

    __device__ Of(const SgdRule& rule, const OptimizerTensor& t, double grad_scale, std::int64_t number)
        : scale(grad_scale),
          decay(t.weight_decay),
          rate(t.lr),
          momentum(rule.momentum),
          keep(number == 1 ? 0 : rule.momentum),
          take(number == 1 ? 1 : rule.take),
          nesterov(rule.nesterov) {}
    __device__ __forceinline__ void operator()(Acc& param, Acc grad, Acc& buffer, Acc&) const {
      const Acc g = grad * scale + decay * param;
      if constexpr (kMomentum) {
        buffer = keep * buffer + take * g;
        param -= rate * (nesterov ? g + momentum * buffer : buffer);
      } else {
        param -= rate * g;
      }
    }
  };
};

template <class Rule>
void step(const Rule& rule, const OptimizerStep& s) {
  if (s.tensors.chunks == 0) return;
  step_kernel<<<static_cast<unsigned>(s.tensors.chunks), kStepThreads, 0, stream()>>>(
      rule, s, static_cast<int>(s.tensors.list.size()));
  CUDA_CHECK_LAUNCH();
}

}  // namespace

void adamw_step(const OptimizerStep& s, const AdamWConstants& c) {
  step(AdamWRule{.beta1 = c.beta1,
                 .beta2 = c.beta2,
                 .eps = c.eps,
                 .log_beta1 = std::log(c.beta1),
                 .log_beta2 = std::log(c.beta2)},
       s);
}

void sgd_step(const OptimizerStep& s, const SgdConstants& c) {
  const auto rule = [&](auto momentum) {
    return SgdRule<decltype(momentum)::value>{
        .momentum = c.momentum, .take = 1 - c.dampening, .nesterov = c.nesterov};
  };
  c.momentum > 0 ? step(rule(std::true_type{}), s) : step(rule(std::false_type{}), s);
}

}  // namespace ergon::kernels::cuda
