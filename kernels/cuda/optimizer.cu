// kernels/optimizer.h on CUDA: a block takes a chunk of a tensor, which it finds in the list.

#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/optimizer.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;

// Vectors of the arithmetic type fill 16 bytes.
template <class T>
inline constexpr int kStepWidth = kVectorWidth<accumulate_t<T>>;

// Calls f(TypeTag<T>{}) with a floating-point type; the same branch for all threads of a block.
template <class F>
__device__ __forceinline__ void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bf16:
      return f(TypeTag<bf16>{});
    case DType::f16:
      return f(TypeTag<f16>{});
    case DType::f64:
      return f(TypeTag<double>{});
    default:
      return f(TypeTag<float>{});
  }
}

// The tensor that this block's chunk belongs to: the last one that starts at the chunk or before it.
__device__ __forceinline__ const OptimizerTensor& tensor_of_block(const OptimizerTensor* tensors, int count) {
  int low = 0, high = count;  // first_chunk of [low] <= chunk < that of [high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (tensors[middle].first_chunk <= blockIdx.x ? low : high) = middle;
  }
  return tensors[low];
}

// Elements of a tensor from a chunk on, in vectors of kWidth where the pointers are aligned for them.
struct ChunkRange {
  std::int64_t first;
  int count;
  int in_vectors;  // of the count

  template <class T>
  __device__ static ChunkRange of_block(const OptimizerTensor& t) {
    const std::int64_t first = (blockIdx.x - t.first_chunk) * kOptimizerChunk;
    const int count = static_cast<int>(min(kOptimizerChunk, t.numel - first));
    const auto misaligned =
        (reinterpret_cast<std::uintptr_t>(t.param) | reinterpret_cast<std::uintptr_t>(t.grad))
            % (kStepWidth<T> * sizeof(T))
        + (reinterpret_cast<std::uintptr_t>(t.state0) | reinterpret_cast<std::uintptr_t>(t.state1)) % 16;
    return {first, count, misaligned == 0 ? count / kStepWidth<T> * kStepWidth<T> : 0};
  }
  // f(width, position) for each vector and each single element of this thread.
  template <int kWidth, class F>
  __device__ void for_each(F&& f) const {
    for (int i = threadIdx.x * kWidth; i < in_vectors; i += kThreads * kWidth) {
      f(std::integral_constant<int, kWidth>{}, first + i);
    }
    for (int i = in_vectors + threadIdx.x; i < count; i += kThreads) {
      f(std::integral_constant<int, 1>{}, first + i);
    }
  }
};

// Rule::Of<Acc>(rule, tensor)(param, grad, states) updates one element.
template <class Rule>
__global__ void __launch_bounds__(kThreads)
    step_kernel(Rule rule, const OptimizerTensor* tensors, int count) {
  const OptimizerTensor t = tensor_of_block(tensors, count);
  with_type(t.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    const typename Rule::template Of<Acc> update(rule, t);
    ChunkRange::of_block<T>(t).template for_each<kStepWidth<T>>([&](auto width, std::int64_t at) {
      constexpr int kWidth = decltype(width)::value;
      T* param_at = static_cast<T*>(t.param) + at;
      Acc* states_at[] = {static_cast<Acc*>(t.state0) + at, static_cast<Acc*>(t.state1) + at};
      auto param = convert_vector<Acc>(load<kWidth>(param_at));
      const auto grad = convert_vector<Acc>(load<kWidth>(static_cast<const T*>(t.grad) + at));
      Vector<Acc, kWidth> states[2];
#pragma unroll
      for (int s = 0; s < Rule::kStates; ++s) states[s] = load<kWidth>(states_at[s]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) update(param[i], grad[i], states[0][i], states[1][i]);
      store(param_at, convert_vector<T>(param));
#pragma unroll
      for (int s = 0; s < Rule::kStates; ++s) store(states_at[s], states[s]);
    });
  });
}

struct AdamWRule {
  static constexpr int kStates = 2;
  double beta1, beta2, eps, grad_scale;
  double correction1, root;  // 1 - beta1^step, 1 / sqrt(1 - beta2^step)

  template <class Acc>
  struct Of {
    Acc scale, decay, rate, root, eps, keep1, keep2, take1, take2;

    __device__ Of(const AdamWRule& rule, const OptimizerTensor& t)
        : scale(rule.grad_scale),
          decay(1 - t.lr * t.weight_decay),
          rate(static_cast<Acc>(t.lr) / static_cast<Acc>(rule.correction1)),
          root(rule.root),
          eps(rule.eps),
          keep1(rule.beta1),
          keep2(rule.beta2),
          take1(1 - rule.beta1),
          take2(1 - rule.beta2) {}
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
  double grad_scale, momentum, keep, take;  // buffer = keep * buffer + take * g
  bool nesterov;

  template <class Acc>
  struct Of {
    Acc scale, decay, rate, momentum, keep, take;
    bool nesterov;

    __device__ Of(const SgdRule& rule, const OptimizerTensor& t)
        : scale(rule.grad_scale),
          decay(t.weight_decay),
          rate(t.lr),
          momentum(rule.momentum),
          keep(rule.keep),
          take(rule.take),
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

__global__ void __launch_bounds__(kThreads)
    chunk_squares_kernel(const OptimizerTensor* tensors, int count, double* partials) {
  __shared__ double scratch[kThreads / kWarpSize];
  const OptimizerTensor t = tensor_of_block(tensors, count);
  double total = 0;
  with_type(t.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    Acc sum = 0;
    ChunkRange::of_block<T>(t).template for_each<kStepWidth<T>>([&](auto width, std::int64_t at) {
      constexpr int kWidth = decltype(width)::value;
      const auto grad = convert_vector<Acc>(load<kWidth>(static_cast<const T*>(t.grad) + at));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum += grad[i] * grad[i];
    });
    total = static_cast<double>(sum);
  });
  total = block_reduce<Sum, kThreads>(total, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// One block.
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(const double* partials, std::int64_t count, double* sum) {
  __shared__ double scratch[kThreads / kWarpSize];
  double total = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) total += partials[i];
  total = block_reduce<Sum, kThreads>(total, scratch);
  if (threadIdx.x == 0) *sum = total;
}

template <class Rule>
void step(const Rule& rule, const OptimizerTensors& tensors) {
  if (tensors.chunks == 0) return;
  step_kernel<<<static_cast<unsigned>(tensors.chunks), kThreads, 0, stream()>>>(
      rule, tensors.device, static_cast<int>(tensors.list.size()));
  CUDA_CHECK_LAUNCH();
}

}  // namespace

void adamw_step(const AdamWStep& s) {
  const auto number = static_cast<double>(s.step);
  step(AdamWRule{.beta1 = s.beta1,
                 .beta2 = s.beta2,
                 .eps = s.eps,
                 .grad_scale = s.grad_scale,
                 .correction1 = 1 - std::pow(s.beta1, number),
                 .root = 1 / std::sqrt(1 - std::pow(s.beta2, number))},
       s.tensors);
}

void sgd_step(const SgdStep& s) {
  const auto rule = [&](auto momentum) {
    return SgdRule<decltype(momentum)::value>{.grad_scale = s.grad_scale,
                                              .momentum = s.momentum,
                                              .keep = s.first_step ? 0 : s.momentum,
                                              .take = s.first_step ? 1 : 1 - s.dampening,
                                              .nesterov = s.nesterov};
  };
  if (s.momentum > 0) {
    step(rule(std::true_type{}), s.tensors);
  } else {
    step(rule(std::false_type{}), s.tensors);
  }
}

void sum_of_squares(const SumOfSquares& p) {
  if (p.tensors.chunks > 0) {
    chunk_squares_kernel<<<static_cast<unsigned>(p.tensors.chunks), kThreads, 0, stream()>>>(
        p.tensors.device, static_cast<int>(p.tensors.list.size()), p.partials);
    CUDA_CHECK_LAUNCH();
  }
  sum_chunks_kernel<<<1, kThreads, 0, stream()>>>(p.partials, p.tensors.chunks, p.sum);
  CUDA_CHECK_LAUNCH();
}

}  // namespace ergon::kernels::cuda
