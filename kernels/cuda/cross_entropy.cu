// kernels/cross_entropy.h on CUDA: a group of threads a row.

#include "core/cuda/index_fault.h"
#include "kernels/cross_entropy.h"
#include "kernels/cuda/common/exp_sum.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/row_group.cuh"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

// Vectors that a thread loads before it looks at the first.
constexpr int kAtOnce = 4;

template <class Params>
__device__ std::int64_t target_of(const Params& p, std::int64_t r) {
  return p.target_dtype == DType::i64 ? static_cast<const std::int64_t*>(p.targets)[r]
                                      : static_cast<const std::int32_t*>(p.targets)[r];
}

// Not ignored, and a class.
__device__ bool counts(const CrossEntropyParams& p, std::int64_t target) {
  return target != p.ignore_index && target >= 0 && target < p.cols;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kMaxRowThreads) cross_entropy_forward_kernel(CrossEntropyParams p) {
  using Acc = accumulate_t<T>;
  __shared__ Acc scratch[kWarpSize];
  const std::int64_t r = first_row() + threadIdx.y;
  const std::int64_t target = r < p.rows ? target_of(p, r) : p.ignore_index;
  const bool counted = counts(p, target), want_total = p.smoothing != 0;
  const int vectors = counted ? static_cast<int>(p.cols / kWidth) : 0;
  const T* row = Rows<const T>(p.logits).row(r);
  ExpSum<Acc> sum;
  Acc total = 0;
  for (int first = threadIdx.x; first < vectors; first += kAtOnce * blockDim.x) {
    Acc x[kAtOnce * kWidth];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int v = first + k * blockDim.x;
      const bool inside = v < vectors;
      const auto part = inside ? load<kWidth>(row + v * kWidth) : Vector<T, kWidth>{};
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        x[k * kWidth + i] = inside ? convert<Acc>(part[i]) : Acc(-INFINITY);
        if (want_total && inside) total += x[k * kWidth + i];
      }
    }
    sum.add(x);
  }
  sum.rescale(row_reduce<Max>(sum.max, scratch));
  sum.sum = row_reduce<Sum>(sum.sum, scratch);
  if (want_total) total = row_reduce<Sum>(total, scratch);
  if (threadIdx.x != 0 || r >= p.rows) return;
  Acc lse = 0, loss = 0;
  if (counted) {
    const Acc shift = sum.shift(sum.max), log_sum = log(sum.sum), hit = convert<Acc>(row[target]);
    lse = shift + log_sum;
    loss = want_total ? lse - Acc(1 - p.smoothing) * hit - Acc(p.smoothing) * total / static_cast<Acc>(p.cols)
                      : (shift - hit) + log_sum;
  }
  if (p.lse != nullptr) static_cast<Acc*>(p.lse)[r] = lse;
  if (p.loss != nullptr) static_cast<Acc*>(p.loss)[r] = loss;
}

// Elements [at, at + kWidth) of an output of T, or for f32 of bf16 or f16 too.
template <class T, int kWidth>
__device__ __forceinline__ void store_as(const RowMatrix& out, std::int64_t at,
                                         const Vector<accumulate_t<T>, kWidth>& values) {
  if constexpr (std::is_same_v<T, float>) {
    if (out.dtype == DType::bf16)
      return store(static_cast<bf16*>(out.data) + at, convert_vector<bf16>(values));
    if (out.dtype == DType::f16) return store(static_cast<f16*>(out.data) + at, convert_vector<f16>(values));
  }
  store(static_cast<T*>(out.data) + at, convert_vector<T>(values));
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kMaxRowThreads) cross_entropy_backward_kernel(CrossEntropyParams p) {
  using Acc = accumulate_t<T>;
  const std::int64_t r = first_row() + threadIdx.y;
  if (r >= p.rows) return;
  const std::int64_t target = target_of(p, r);
  const bool counted = counts(p, target);
  const int vectors = static_cast<int>(p.cols / kWidth);
  const T* row = Rows<const T>(p.logits).row(r);
  Acc lse = 0, scale = 1;
  if (counted) {
    lse = static_cast<const Acc*>(p.lse)[r];
    if (p.weight != nullptr) scale = *static_cast<const Acc*>(p.weight);
    if (p.dloss != nullptr) scale *= static_cast<const Acc*>(p.dloss)[r * p.dloss_stride];
  }
  const Acc spread = Acc(p.smoothing / static_cast<double>(p.cols)), hit = Acc(1 - p.smoothing) * scale;
  for (int first = threadIdx.x; first < vectors; first += kAtOnce * blockDim.x) {
    Vector<T, kWidth> parts[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int v = first + k * blockDim.x;
      if (v < vectors && counted) parts[k] = load<kWidth>(row + v * kWidth);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int v = first + k * blockDim.x;
      if (v >= vectors) break;
      Vector<Acc, kWidth> dx{};
      if (counted) {
        dx = convert_vector<Acc>(parts[k]);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          dx[i] = (exp(dx[i] - lse) - spread) * scale;
          if (v * kWidth + i == target) dx[i] -= hit;
        }
      }
      store_as<T>(p.dlogits, r * p.dlogits.stride + v * kWidth, dx);
    }
  }
}

// --- one block each: a few bytes a row ---

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads)
    target_weight_kernel(TargetWeightParams p, ergon::detail::IndexFault* fault) {
  __shared__ unsigned long long scratch[kThreads / kWarpSize];
  unsigned long long counted = 0;
  for (std::int64_t r = threadIdx.x; r < p.rows; r += kThreads) {
    const std::int64_t target = target_of(p, r);
    if (target == p.ignore_index) continue;
    ++counted;
    if (target < 0 || target >= p.cols) {
      raise_index_fault(fault, "[cross_entropy] target", target, 0, p.cols, r);
    }
  }
  counted = block_reduce<Sum, kThreads>(counted, scratch);
  if (threadIdx.x != 0) return;
  const double weight = 1 / static_cast<double>(counted);
  if (p.dtype == DType::f64) {
    *static_cast<double*>(p.weight) = weight;
  } else {
    *static_cast<float*>(p.weight) = static_cast<float>(weight);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) total_loss_kernel(TotalLossParams p) {
  __shared__ double scratch[kThreads / kWarpSize];
  double sum = 0;
  for (std::int64_t r = threadIdx.x; r < p.rows; r += kThreads) sum += static_cast<const T*>(p.loss)[r];
  sum = block_reduce<Sum, kThreads>(sum, scratch);
  if (threadIdx.x != 0) return;
  if (p.weight != nullptr) sum *= *static_cast<const T*>(p.weight);
  *static_cast<T*>(p.total) = static_cast<T>(sum);
}

// Calls f(type, width, blocks, block).
template <class F>
void for_rows(const CrossEntropyParams& p, F&& f) {
  ERGON_CHECK(p.cols < std::int64_t{1} << 30, "[cross_entropy] {} classes on cuda: expected fewer than 2^30",
              p.cols);
  if (p.rows == 0) return;
  dispatch_floating(p.logits.dtype, "cross_entropy", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto launch = [&](auto width) {
      const dim3 block = row_block(p.cols / width, kAtOnce);
      f(tag, width, static_cast<unsigned>((p.rows + block.y - 1) / block.y), block);
      CUDA_CHECK_LAUNCH();
    };
    // f64 one by one: registers do not hold more.
    constexpr int kWidth = sizeof(T) == 8 ? 1 : kVectorWidth<T>;
    if (rows_in_vectors(p.cols, sizeof(T), {p.logits, p.dlogits})) {
      launch(std::integral_constant<int, kWidth>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace

void cross_entropy_forward(const CrossEntropyParams& p) {
  for_rows(p, [&](auto tag, auto width, unsigned blocks, dim3 block) {
    cross_entropy_forward_kernel<typename decltype(tag)::type, decltype(width)::value>
        <<<blocks, block, 0, stream()>>>(p);
  });
}

void cross_entropy_backward(const CrossEntropyParams& p) {
  for_rows(p, [&](auto tag, auto width, unsigned blocks, dim3 block) {
    cross_entropy_backward_kernel<typename decltype(tag)::type, decltype(width)::value>
        <<<blocks, block, 0, stream()>>>(p);
  });
}

void target_weight(const TargetWeightParams& p) {
  target_weight_kernel<<<1, kThreads, 0, stream()>>>(p, ergon::detail::index_fault());
  CUDA_CHECK_LAUNCH();
}

void total_loss(const TotalLossParams& p) {
  if (p.dtype == DType::f64) {
    total_loss_kernel<double><<<1, kThreads, 0, stream()>>>(p);
  } else {
    total_loss_kernel<float><<<1, kThreads, 0, stream()>>>(p);
  }
  CUDA_CHECK_LAUNCH();
}

}  // namespace ergon::kernels::cuda
