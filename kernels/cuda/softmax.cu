// kernels/softmax.h on CUDA. A slice is what is normalised together. Its threads keep their part in
// registers; what a very long one has beyond them is read again.

#include "kernels/cuda/common/exp_sum.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/row_group.cuh"
#include "kernels/softmax.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

// Along the last dimension: a group of threads a row, as kernels/cuda/common/row_group.cuh has them.
template <int kVector>
struct RowSlice {
  static constexpr int kWidth = kVector;
  static constexpr int kHeld = 4;
  static constexpr int kScratch = kWarpSize;

  std::int64_t start;  // of the slice
  int vectors;         // 0 for threads without a slice

  __device__ explicit RowSlice(const SoftmaxShape& shape) {
    const std::int64_t row = first_row() + threadIdx.y;
    start = row * shape.length;
    vectors = row < shape.outer ? static_cast<int>(shape.length / kWidth) : 0;
  }
  __device__ int thread() const { return threadIdx.x; }
  __device__ int threads() const { return blockDim.x; }
  __device__ std::int64_t at(int v) const { return start + v * kWidth; }
  template <class Op, class T>
  __device__ T reduce(T value, T* scratch) const {
    return row_reduce<Op>(value, scratch);
  }
};

// Along another dimension: 32 columns side by side, eight threads each.
struct ColumnSlice {
  static constexpr int kWidth = 1;
  static constexpr int kHeld = 4;
  static constexpr int kShares = 8;
  static constexpr int kScratch = kWarpSize * kShares;

  std::int64_t start;
  std::int64_t step;
  int vectors;

  __device__ explicit ColumnSlice(const SoftmaxShape& shape) : step(shape.inner) {
    const std::int64_t column = std::int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
    const std::int64_t outer = column / shape.inner;
    start = outer * (shape.length - 1) * shape.inner + column;
    vectors = outer < shape.outer ? static_cast<int>(shape.length) : 0;
  }
  __device__ int thread() const { return threadIdx.y; }
  __device__ int threads() const { return kShares; }
  __device__ std::int64_t at(int v) const { return start + v * step; }
  template <class Op, class T>
  __device__ T reduce(T value, T* scratch) const {
    __syncthreads();  // the scratch may still be read
    scratch[threadIdx.y * kWarpSize + threadIdx.x] = value;
    __syncthreads();
    value = scratch[threadIdx.x];
#pragma unroll
    for (int share = 1; share < kShares; ++share)
      value = Op{}(value, scratch[share * kWarpSize + threadIdx.x]);
    return value;
  }
};

// This thread's part of a tensor's slice, in the arithmetic type.
template <class T, class Slice>
class Part {
 public:
  using Acc = accumulate_t<T>;
  using Values = Vector<Acc, Slice::kWidth>;

  __device__ Part(const T* data, const Slice& slice) : data_(data), slice_(slice) {
#pragma unroll
    for (int slot = 0; slot < Slice::kHeld; ++slot) {
      const int v = slice.thread() + slot * slice.threads();
      if (v < slice.vectors) held_[slot] = convert_vector<Stored>(load<Slice::kWidth>(data + slice.at(v)));
    }
  }
  __device__ __forceinline__ Values at(int slot, int v) const {
    if (slot < Slice::kHeld) return convert_vector<Acc>(held_[slot]);
    return convert_vector<Acc>(load<Slice::kWidth>(data_ + slice_.at(v)));
  }

 private:
  using Stored = std::conditional_t<Slice::kWidth == 1, Acc, T>;
  Vector<Stored, Slice::kWidth> held_[Slice::kHeld];
  const T* data_;
  const Slice& slice_;
};

// f(slot, v), see for_each_vector.
template <class Slice, class F>
__device__ __forceinline__ void for_each(const Slice& slice, F&& f) {
#pragma unroll
  for (int slot = 0; slot < Slice::kHeld; ++slot) {
    const int v = slice.thread() + slot * slice.threads();
    if (v < slice.vectors) f(slot, v);
  }
  for (int v = slice.thread() + Slice::kHeld * slice.threads(); v < slice.vectors; v += slice.threads()) {
    f(Slice::kHeld, v);
  }
}

template <class T, class Slice>
__global__ void __launch_bounds__(kMaxRowThreads)
    softmax_forward_kernel(SoftmaxForm form, const T* x, T* y, SoftmaxShape shape) {
  using Acc = accumulate_t<T>;
  __shared__ Acc scratch[Slice::kScratch];
  const Slice slice(shape);
  const Part<T, Slice> xs(x, slice);
  ExpSum<Acc> sum;
  for_each(slice, [&](int slot, int v) { sum.add(xs.at(slot, v).values); });
  sum.rescale(slice.template reduce<Max>(sum.max, scratch));
  const Acc max = sum.max, total = slice.template reduce<Sum>(sum.sum, scratch);
  const bool is_log = form == SoftmaxForm::log_softmax;
  const Acc last = is_log ? log(total) : Acc(1) / total;
  for_each(slice, [&](int slot, int v) {
    auto values = xs.at(slot, v);
#pragma unroll
    for (int i = 0; i < Slice::kWidth; ++i) {
      values[i] = is_log ? values[i] - max - last : exp(values[i] - max) * last;
    }
    store(y + slice.at(v), convert_vector<T>(values));
  });
}

template <class T, class Slice>
__global__ void __launch_bounds__(kMaxRowThreads)
    softmax_backward_kernel(SoftmaxForm form, const T* y, const T* dy, T* dx, SoftmaxShape shape) {
  using Acc = accumulate_t<T>;
  __shared__ Acc scratch[Slice::kScratch];
  const Slice slice(shape);
  const Part<T, Slice> ys(y, slice), dys(dy, slice);
  const bool is_log = form == SoftmaxForm::log_softmax;
  Acc sum = 0;
  for_each(slice, [&](int slot, int v) {
    const auto p = ys.at(slot, v), g = dys.at(slot, v);
#pragma unroll
    for (int i = 0; i < Slice::kWidth; ++i) sum += is_log ? g[i] : g[i] * p[i];
  });
  sum = slice.template reduce<Sum>(sum, scratch);
  for_each(slice, [&](int slot, int v) {
    const auto p = ys.at(slot, v);
    auto g = dys.at(slot, v);
#pragma unroll
    for (int i = 0; i < Slice::kWidth; ++i) g[i] = is_log ? g[i] - exp(p[i]) * sum : p[i] * (g[i] - sum);
    store(dx + slice.at(v), convert_vector<T>(g));
  });
}

// Calls f(TypeTag<Slice>{}, blocks, block) with the kind of slice that fits.
template <class T, class F>
void for_slices(const SoftmaxShape& shape, std::initializer_list<const void*> tensors, F&& f) {
  ERGON_CHECK(shape.length < std::int64_t{1} << 30,
              "[softmax] a dimension of {} on cuda: expected less than 2^30", shape.length);
  if (shape.inner > 1) {
    const std::int64_t columns = shape.outer * shape.inner;
    return f(TypeTag<ColumnSlice>{}, static_cast<unsigned>((columns + kWarpSize - 1) / kWarpSize),
             dim3(kWarpSize, ColumnSlice::kShares));
  }
  bool in_vectors = shape.length % kVectorWidth<T> == 0;
  for (const void* tensor : tensors) in_vectors &= aligned_to(tensor, 16);
  const auto rows = [&](auto width) {
    using Slice = RowSlice<decltype(width)::value>;
    const dim3 block = row_block(shape.length / width, Slice::kHeld);
    f(TypeTag<Slice>{}, static_cast<unsigned>((shape.outer + block.y - 1) / block.y), block);
  };
  if (in_vectors) {
    rows(std::integral_constant<int, kVectorWidth<T>>{});
  } else {
    rows(std::integral_constant<int, 1>{});
  }
}

}  // namespace

void softmax(SoftmaxForm form, DType dtype, const void* x, void* y, const SoftmaxShape& shape) {
  if (shape.outer * shape.length * shape.inner == 0) return;
  dispatch_floating(dtype, "softmax", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_slices<T>(shape, {x, y}, [&](auto slice, unsigned blocks, dim3 block) {
      softmax_forward_kernel<T, typename decltype(slice)::type>
          <<<blocks, block, 0, stream()>>>(form, static_cast<const T*>(x), static_cast<T*>(y), shape);
      CUDA_CHECK_LAUNCH();
    });
  });
}

void softmax_backward(SoftmaxForm form, DType dtype, const void* y, const void* dy, void* dx,
                      const SoftmaxShape& shape) {
  if (shape.outer * shape.length * shape.inner == 0) return;
  dispatch_floating(dtype, "softmax", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_slices<T>(shape, {y, dy, dx}, [&](auto slice, unsigned blocks, dim3 block) {
      softmax_backward_kernel<T, typename decltype(slice)::type><<<blocks, block, 0, stream()>>>(
          form, static_cast<const T*>(y), static_cast<const T*>(dy), static_cast<T*>(dx), shape);
      CUDA_CHECK_LAUNCH();
    });
  });
}

}  // namespace ergon::kernels::cuda
