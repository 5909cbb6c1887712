// The parts that splits of the keys leave, put together: softmax_lse = log(sum_s exp(lse_s)),
// o = sum_s exp(lse_s - softmax_lse) o_s, split after split.

#include "core/cuda/vector.cuh"
#include "kernels/cuda/attention/item.cuh"
#include "kernels/cuda/common/launch.h"

namespace ergon::kernels::cuda::attention_detail {
namespace {

constexpr int kThreads = 128;

// A warp for a row, four elements of it for each lane at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) attention_combine_kernel(const __grid_constant__ Arguments a) {
  const AttentionParams& p = a.params;
  const int lane = threadIdx.x % 32;
  const std::int64_t row = std::int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (row >= a.statistics) return;
  float max = -INFINITY, sum = 0;
  for (int s = 0; s < a.splits; ++s) max = fmaxf(max, a.partial_lse[s * a.statistics + row]);
  const float shift = max == -INFINITY ? 0.0f : max;
  for (int s = 0; s < a.splits; ++s) sum += expf(a.partial_lse[s * a.statistics + row] - shift);
  const float lse = shift + logf(sum);
  const bool packed = p.cu_seqlens_q != nullptr;
  const std::int64_t queries = packed ? p.total_q : p.seqlen_q;
  const std::int64_t i = row % queries, h = row / queries % p.num_heads, b = row / queries / p.num_heads;
  T* const o = static_cast<T*>(p.o.data) + b * p.o.batch_stride + h * p.o.head_stride + i * p.o.seqlen_stride;
  for (int d = 4 * lane; d < p.head_dim; d += 4 * 32) {
    Vector<float, 4> total = {};
    for (int s = 0; s < a.splits; ++s) {
      const std::int64_t part = s * a.statistics + row;
      const float part_lse = a.partial_lse[part];
      const float weight = part_lse == -INFINITY ? 0.0f : expf(part_lse - lse);
      const auto values = load<4>(a.partial_o + part * p.head_dim + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) total[e] += weight * values[e];
    }
    store(o + d, convert_vector<T>(total));
  }
  if (lane == 0 && p.softmax_lse != nullptr) static_cast<float*>(p.softmax_lse)[row] = lse;
}

template <class T>
void launch(const Arguments& a) {
  constexpr std::int64_t kRows = kThreads / 32;
  attention_combine_kernel<T>
      <<<static_cast<unsigned>((a.statistics + kRows - 1) / kRows), kThreads, 0, stream()>>>(a);
  CUDA_CHECK_LAUNCH();
}

}  // namespace

void launch_combine(const Arguments& a) { a.params.dtype == DType::bf16 ? launch<bf16>(a) : launch<f16>(a); }

}  // namespace ergon::kernels::cuda::attention_detail
