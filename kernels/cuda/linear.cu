// kernels/linear.h on CUDA: a block takes 32 vectors of columns of a chunk of rows.

#include "kernels/cuda/common/activations.cuh"
#include "kernels/cuda/common/column_sum.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"
#include "kernels/cuda/common/rows.cuh"
#include "kernels/linear.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kRows = 8;  // side by side in a block
constexpr int kThreads = kWarpSize * kRows;

// dout * activation'(pre)
template <class Acc>
__device__ __forceinline__ Acc through_activation(Activation activation, Acc dout, Acc pre) {
  switch (activation) {
    case Activation::relu:
      return pre > 0 ? dout : Acc(0);
    case Activation::gelu_tanh:
      return dout * gelu_tanh_grad(pre);
    case Activation::gelu_erf:
      return dout * gelu_erf_grad(pre);
    case Activation::silu:
      return dout * silu_grad(pre);
    default:
      return dout;
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    bias_activation_backward_kernel(BiasActivationBackward p, std::int64_t chunk) {
  using Acc = accumulate_t<T>;
  using Columns = BlockColumns<Acc, kWidth>;
  __shared__ Acc scratch[Columns::scratch_size(kThreads)];
  const std::int64_t first_col = std::int64_t{blockIdx.x} * kWarpSize * kWidth;
  const std::int64_t col = first_col + threadIdx.x * kWidth;
  const std::int64_t begin = blockIdx.y * chunk, end = min(p.rows, begin + chunk);
  Vector<Acc, kWidth> sum{};
  if (col < p.cols) {
#pragma unroll 2
    for (std::int64_t r = begin + threadIdx.y; r < end; r += kRows) {
      const std::int64_t at = r * p.cols + col;
      auto dpre = convert_vector<Acc>(load<kWidth>(static_cast<const T*>(p.dout) + at));
      if (p.activation != Activation::none) {
        const auto pre = convert_vector<Acc>(load<kWidth>(static_cast<const T*>(p.pre) + at));
#pragma unroll
        for (int i = 0; i < kWidth; ++i) dpre[i] = through_activation(p.activation, dpre[i], pre[i]);
      }
      if (p.dpre != nullptr) store(static_cast<T*>(p.dpre) + at, convert_vector<T>(dpre));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] += dpre[i];
    }
  }
  if (p.dbias == nullptr) return;
  Acc* share = static_cast<Acc*>(p.workspace) + blockIdx.y * p.cols + first_col;
  Columns::sum(sum, share, static_cast<int>(min(p.cols - first_col, std::int64_t{kThreads} * kWidth)),
               scratch);
}

}  // namespace

void bias_activation_backward(const BiasActivationBackward& p) {
  if (p.cols == 0) return;
  const std::int64_t chunk = bias_gradient_chunk_rows(p.rows), chunks = (p.rows + chunk - 1) / chunk;
  const auto matrix = [&](const void* data) { return RowMatrix{const_cast<void*>(data), p.dtype, p.cols}; };
  if (chunks > 0) {
    dispatch_floating(p.dtype, "bias_activation_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const auto launch = [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        constexpr std::int64_t kCols = kWarpSize * kWidth;
        const dim3 grid(static_cast<unsigned>((p.cols + kCols - 1) / kCols), static_cast<unsigned>(chunks));
        bias_activation_backward_kernel<T, kWidth><<<grid, dim3(kWarpSize, kRows), 0, stream()>>>(p, chunk);
        CUDA_CHECK_LAUNCH();
      };
      if (rows_in_vectors(p.cols, sizeof(T), {matrix(p.dout), matrix(p.pre), matrix(p.dpre)})) {
        launch(std::integral_constant<int, kVectorWidth<T>>{});
      } else {
        launch(std::integral_constant<int, 1>{});
      }
    });
  }
  if (p.dbias != nullptr) sum_partials(p.workspace, chunks, p.cols, p.cols, {p.dbias, p.dbias_dtype, p.cols});
}

}  // namespace ergon::kernels::cuda
