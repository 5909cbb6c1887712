#include <algorithm>

#include "core/cuda/types.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/gemm/widen.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

using namespace device;

constexpr int kThreads = 256;

// A matrix of each batch entry that has one of its own, as lines of elements.
struct Lines {
  const void* from;
  DType dtype;
  std::int64_t outer, inner, lines, elements;
  std::int64_t outer_stride, inner_stride, line_stride, unit;
  std::int64_t padded;  // elements from one converted line to the next: they start at multiples of 16 bytes
  bool along_cols;
};

Lines lines_of(const GemmOperand<const void*>& x, std::int64_t rows, std::int64_t cols, const GemmParams& p) {
  const bool along_cols = x.col_stride <= x.row_stride;
  const std::int64_t elements = along_cols ? cols : rows;
  return {.from = x.data,
          .dtype = x.dtype,
          .outer = x.outer_stride == 0 ? 1 : p.batch_outer,
          .inner = x.inner_stride == 0 ? 1 : p.batch_inner,
          .lines = along_cols ? rows : cols,
          .elements = elements,
          .outer_stride = x.outer_stride,
          .inner_stride = x.inner_stride,
          .line_stride = along_cols ? x.row_stride : x.col_stride,
          .unit = along_cols ? x.col_stride : x.row_stride,
          .padded = (elements + 3) / 4 * 4,
          .along_cols = along_cols};
}

Lines lines_of_a(const GemmParams& p) { return lines_of(p.a, p.M, p.K, p); }
Lines lines_of_b(const GemmParams& p) { return lines_of(p.b, p.K, p.N, p); }

std::int64_t bytes_of(const Lines& x) {
  return x.dtype == DType::f32 ? 0 : x.outer * x.inner * x.lines * x.padded * 4;
}

// One block to a line at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) widen_kernel(const Lines x, float* to) {
  for (std::int64_t line = blockIdx.x; line < x.outer * x.inner * x.lines; line += gridDim.x) {
    const std::int64_t batch = line / x.lines;
    const T* from = static_cast<const T*>(x.from) + batch / x.inner * x.outer_stride
                    + batch % x.inner * x.inner_stride + line % x.lines * x.line_stride;
    for (std::int64_t e = threadIdx.x; e < x.elements; e += kThreads) {
      to[line * x.padded + e] = convert<float>(from[e * x.unit]);
    }
  }
}

void launch(const Lines& x, void* to) {
  const std::int64_t lines = x.outer * x.inner * x.lines;
  if (x.dtype == DType::f32 || lines * x.elements == 0) return;
  const auto blocks = static_cast<unsigned>(grid_stride_blocks(lines, 1, kThreads));
  if (x.dtype == DType::bf16) {
    widen_kernel<bf16><<<blocks, kThreads, 0, stream()>>>(x, static_cast<float*>(to));
  } else {
    widen_kernel<f16><<<blocks, kThreads, 0, stream()>>>(x, static_cast<float*>(to));
  }
  CUDA_CHECK_LAUNCH();
}

GemmOperand<const void*> operand_at(const void* data, const Lines& x) {
  const std::int64_t matrix = x.lines * x.padded;
  return {.data = data,
          .dtype = DType::f32,
          .row_stride = x.along_cols ? x.padded : 1,
          .col_stride = x.along_cols ? 1 : x.padded,
          .outer_stride = x.outer_stride == 0 ? 0 : x.inner * matrix,
          .inner_stride = x.inner_stride == 0 ? 0 : matrix};
}

char* after(void* workspace, std::int64_t bytes) { return static_cast<char*>(workspace) + bytes; }

}  // namespace

bool has_two_dtypes(const GemmParams& p) {
  const auto narrow = [](DType dtype) {
    return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
  };
  return p.a.dtype != p.b.dtype && narrow(p.a.dtype) && narrow(p.b.dtype);
}

std::int64_t widened_bytes(const GemmParams& p) { return bytes_of(lines_of_a(p)) + bytes_of(lines_of_b(p)); }

GemmParams widened(const GemmParams& p) {
  const Lines a = lines_of_a(p), b = lines_of_b(p);
  GemmParams wide = p;
  if (a.dtype != DType::f32) wide.a = operand_at(p.workspace, a);
  if (b.dtype != DType::f32) wide.b = operand_at(after(p.workspace, bytes_of(a)), b);
  wide.workspace = after(p.workspace, bytes_of(a) + bytes_of(b));
  return wide;
}

void launch_widen(const GemmParams& p) {
  const Lines a = lines_of_a(p), b = lines_of_b(p);
  launch(a, p.workspace);
  launch(b, after(p.workspace, bytes_of(a)));
}

}  // namespace ergon::kernels::cuda::gemm_detail
