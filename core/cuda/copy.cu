// core/copy.h on one CUDA device: strided copies with conversion, sums into strided tensors, filling.

#include <bit>

#include "core/cuda/check.h"
#include "core/cuda/strided.cuh"
#include "core/cuda/types.cuh"
#include "core/cuda/vector.cuh"
#include "core/cuda_backend.h"
#include "core/tensor.h"

namespace ergon::detail::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;

cudaStream_t stream_of(const Tensor& tensor) {
  return static_cast<cudaStream_t>(current_stream(tensor.device()).handle());
}

unsigned blocks_for(std::int64_t items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

StridedLoop<2> plan(const Tensor& destination, const Tensor& source) {
  const Tensor expanded = source.shape() == destination.shape() ? source : source.expand(destination.shape());
  ERGON_CHECK(destination.numel() < std::int64_t{1} << 31,
              "[copy] a tensor of shape {} on cuda: expected fewer than 2^31 "
              "elements in one that is not contiguous",
              destination.shape());
  return merge_dims<2>(destination.shape(), {destination.strides(), expanded.strides()});
}

// One thread moves kWidth elements: consecutive in both tensors where kWidth > 1.
template <int kWidth, class To, class From>
__global__ void copy_kernel(StridedIndex<2> index, To* to, const From* from, std::uint32_t vectors) {
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= vectors) return;
  const auto offsets = index.offsets(i);
  if constexpr (kWidth == 1) {
    to[offsets[0] * kWidth] = convert<To>(from[offsets[1]]);
  } else {
    store(to + offsets[0] * kWidth, convert_vector<To>(load<kWidth>(from + offsets[1] * kWidth)));
  }
}

// Tiles of two dimensions, each dense in one of the tensors: reads and writes go along memory, and the tile
// in shared memory is turned between them. The grid: (cols / 32, rows / 32, all other dimensions).
constexpr int kTile = 32;

template <class T>
__global__ void copy_transposed_kernel(StridedIndex<2> outer, T* to, const T* from,
                                       std::int64_t to_row_stride, std::int64_t from_col_stride,
                                       std::int64_t rows, std::int64_t cols) {
  constexpr int kPadding = sizeof(T) < 4 ? 4 / sizeof(T) : 1;  // lines an odd number of banks apart
  __shared__ T tile[kTile][kTile + kPadding];
  const auto offsets = outer.offsets(blockIdx.z);
  const std::int64_t row0 = std::int64_t{blockIdx.y} * kTile, col0 = std::int64_t{blockIdx.x} * kTile;
  const int lane = threadIdx.x % kTile;
  for (int line = threadIdx.x / kTile; line < kTile; line += kThreads / kTile) {
    if (row0 + lane < rows && col0 + line < cols) {
      tile[line][lane] = from[offsets[1] + (col0 + line) * from_col_stride + row0 + lane];
    }
  }
  __syncthreads();
  for (int line = threadIdx.x / kTile; line < kTile; line += kThreads / kTile) {
    if (row0 + line < rows && col0 + lane < cols) {
      to[offsets[0] + (row0 + line) * to_row_stride + col0 + lane] = tile[lane][line];
    }
  }
}

// The widest vector that both sides allow: every dimension but the innermost starts at a multiple of it.
template <int N>
int vector_width(const StridedLoop<N>& loop, std::initializer_list<const void*> pointers,
                 std::initializer_list<std::int64_t> sizes) {
  std::int64_t largest_size = 1;
  for (const std::int64_t size : sizes) largest_size = std::max(largest_size, size);
  const auto fits = [&](std::int64_t width) {
    if (loop.row_length() % width != 0) return false;
    for (int k = 0; k < N; ++k) {
      if (loop.strides[k].back() != 1 || !aligned_to(pointers.begin()[k], width * sizes.begin()[k]))
        return false;
      for (int dim = 0; dim + 1 < loop.shape.size(); ++dim) {
        if (loop.strides[k][dim] % width != 0) return false;
      }
    }
    return true;
  };
  std::int64_t width = 16 / largest_size;
  while (width > 1 && !fits(width)) width /= 2;
  return static_cast<int>(width);
}

// The loop over vectors of `width` elements.
template <int N>
StridedLoop<N> in_vectors(StridedLoop<N> loop, int width) {
  loop.shape.back() /= width;
  for (int dim = 0; dim + 1 < loop.shape.size(); ++dim) {
    for (int k = 0; k < N; ++k) loop.strides[k][dim] /= width;
  }
  return loop;
}

template <class To, class From>
void copy_typed(const StridedLoop<2>& loop, To* to, const From* from, std::int64_t numel,
                cudaStream_t stream) {
  const int width = vector_width(loop, {to, from}, {sizeof(To), sizeof(From)});
  const StridedIndex<2> index(in_vectors(loop, width));
  const auto vectors = static_cast<std::uint32_t>(numel / width);
  const auto launch = [&](auto width_constant) {
    copy_kernel<decltype(width_constant)::value>
        <<<blocks_for(vectors), kThreads, 0, stream>>>(index, to, from, vectors);
  };
  switch (width) {
    case 16:
      if constexpr (sizeof(To) == 1 && sizeof(From) == 1) launch(std::integral_constant<int, 16>{});
      break;
    case 8:
      if constexpr (sizeof(To) <= 2 && sizeof(From) <= 2) launch(std::integral_constant<int, 8>{});
      break;
    case 4:
      if constexpr (sizeof(To) <= 4 && sizeof(From) <= 4) launch(std::integral_constant<int, 4>{});
      break;
    case 2:
      launch(std::integral_constant<int, 2>{});
      break;
    default:
      launch(std::integral_constant<int, 1>{});
  }
  CUDA_CHECK_LAUNCH();
}

// A matrix that is dense along its rows in one tensor and along its columns in the other?
bool is_transposition(const StridedLoop<2>& loop) {
  const int last = loop.shape.size() - 1;
  return last >= 1 && loop.strides[0][last] == 1 && loop.strides[1][last] > 1
         && loop.strides[1][last - 1] == 1 && loop.shape[last] >= 8 && loop.shape[last - 1] >= 8;
}

template <class T>
bool copy_transposed(const StridedLoop<2>& loop, T* to, const T* from, cudaStream_t stream) {
  const int last = loop.shape.size() - 1;
  StridedLoop<2> outer;
  for (int dim = 0; dim + 1 < last; ++dim) {
    outer.shape.push_back(loop.shape[dim]);
    for (int k = 0; k < 2; ++k) outer.strides[k].push_back(loop.strides[k][dim]);
  }
  const std::int64_t rows = loop.shape[last - 1], cols = loop.shape[last], matrices = numel(outer.shape);
  const std::int64_t row_tiles = (rows + kTile - 1) / kTile, col_tiles = (cols + kTile - 1) / kTile;
  if (matrices > 65535 || row_tiles > 65535) return false;
  copy_transposed_kernel<<<dim3(static_cast<unsigned>(col_tiles), static_cast<unsigned>(row_tiles),
                                static_cast<unsigned>(matrices)),
                           kThreads, 0, stream>>>(StridedIndex<2>(outer), to, from, loop.strides[0][last - 1],
                                                  loop.strides[1][last], rows, cols);
  CUDA_CHECK_LAUNCH();
  return true;
}

// Bits of the same type are moved as integers of their size: four types instead of nine.
template <class F>
void dispatch_bits(DType dtype, F&& f) {
  switch (size_of(dtype)) {
    case 1:
      return f(TypeTag<std::uint8_t>{});
    case 2:
      return f(TypeTag<std::uint16_t>{});
    case 4:
      return f(TypeTag<std::uint32_t>{});
    default:
      return f(TypeTag<std::uint64_t>{});
  }
}

// Adds source to destination. With repeats (destination strides of 0) one thread sums up all that goes to one
// element: the loop's dimensions are split into kept ones (the grid) and summed ones.
template <int kWidth, class T>
__global__ void accumulate_kernel(StridedIndex<2> kept, StridedIndex<1> summed, T* to, const T* from,
                                  std::uint32_t vectors, std::uint32_t repeats) {
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= vectors) return;
  const auto offsets = kept.offsets(i);
  to += offsets[0] * kWidth;
  from += offsets[1] * kWidth;
  using Acc = accumulate_t<T>;
  Vector<Acc, kWidth> sum = convert_vector<Acc>(load<kWidth>(to));
  for (std::uint32_t r = 0; r < repeats; ++r) {
    const Vector<Acc, kWidth> values = convert_vector<Acc>(load<kWidth>(from + summed.offsets(r)[0]));
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] += values[k];
  }
  store(to, convert_vector<T>(sum));
}

template <int kWidth, class T>
__global__ void fill_kernel(StridedIndex<1> index, T* to, T value, std::uint32_t vectors) {
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= vectors) return;
  Vector<T, kWidth> values;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) values[k] = value;
  store(to + index.offsets(i)[0] * kWidth, values);
}

template <class T>
void fill_typed(const StridedLoop<1>& loop, T* to, T value, std::int64_t numel, cudaStream_t stream) {
  const int width = vector_width(loop, {to}, {sizeof(T)}) == kVectorWidth<T> ? kVectorWidth<T> : 1;
  const StridedIndex<1> index(in_vectors(loop, width));
  const auto vectors = static_cast<std::uint32_t>(numel / width);
  const auto kernel = width == 1 ? fill_kernel<1, T> : fill_kernel<kVectorWidth<T>, T>;
  kernel<<<blocks_for(vectors), kThreads, 0, stream>>>(index, to, value, vectors);
  CUDA_CHECK_LAUNCH();
}

// The bits of `value` in dtype, converted as core/copy.h says.
template <class T>
T host_convert(double value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value != 0;
  } else if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, f16>) {
    return __float2half_rn(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

}  // namespace

void copy(const Tensor& destination, const Tensor& source) {
  DeviceGuard guard(destination.device());
  const cudaStream_t stream = stream_of(destination);
  if (destination.dtype() == source.dtype()) {
    if (destination.shape() == source.shape() && destination.is_contiguous() && source.is_contiguous()) {
      CUDA_CHECK(cudaMemcpyAsync(destination.data_ptr(), source.data_ptr(),
                                 static_cast<std::size_t>(source.nbytes()), cudaMemcpyDeviceToDevice,
                                 stream));
      return;
    }
    const StridedLoop<2> loop = plan(destination, source);
    dispatch_bits(destination.dtype(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      T* to = static_cast<T*>(destination.data_ptr());
      const T* from = static_cast<const T*>(source.data_ptr());
      if (is_transposition(loop) && copy_transposed(loop, to, from, stream)) return;
      copy_typed(loop, to, from, destination.numel(), stream);
    });
    return;
  }
  const StridedLoop<2> loop = plan(destination, source);
  dispatch_all(destination.dtype(), [&](auto to_tag) {
    using To = typename decltype(to_tag)::type;
    dispatch_all(source.dtype(), [&](auto from_tag) {
      using From = typename decltype(from_tag)::type;
      if constexpr (!std::is_same_v<To, From>) {
        copy_typed(loop, static_cast<To*>(destination.data_ptr()),
                   static_cast<const From*>(source.data_ptr()), destination.numel(), stream);
      }
    });
  });
}

void accumulate(const Tensor& destination, const Tensor& source) {
  DeviceGuard guard(destination.device());
  const StridedLoop<2> loop = plan(destination, source);
  StridedLoop<2> kept;
  StridedLoop<1> summed;
  for (int dim = 0; dim < loop.shape.size(); ++dim) {
    if (loop.strides[0][dim] == 0 && loop.shape[dim] > 1) {
      summed.shape.push_back(loop.shape[dim]);
      summed.strides[0].push_back(loop.strides[1][dim]);
    } else {
      kept.shape.push_back(loop.shape[dim]);
      for (int k = 0; k < 2; ++k) kept.strides[k].push_back(loop.strides[k][dim]);
    }
  }
  if (kept.shape.empty()) {  // one element
    kept.shape.push_back(1);
    for (int k = 0; k < 2; ++k) kept.strides[k].push_back(0);
  }
  const std::int64_t size = size_of(destination.dtype());
  int width = vector_width(kept, {destination.data_ptr(), source.data_ptr()}, {size, size});
  for (const std::int64_t stride : summed.strides[0]) width = stride % width == 0 ? width : 1;
  if (width * size < 16) width = 1;
  const StridedIndex<2> index(in_vectors(kept, width));
  const auto vectors = static_cast<std::uint32_t>(numel(kept.shape) / width);
  const auto repeats = static_cast<std::uint32_t>(numel(summed.shape));
  dispatch_floating(destination.dtype(), "accumulate", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = static_cast<T*>(destination.data_ptr());
    const T* from = static_cast<const T*>(source.data_ptr());
    const cudaStream_t stream = stream_of(destination);
    if (width > 1) {
      accumulate_kernel<kVectorWidth<T>><<<blocks_for(vectors), kThreads, 0, stream>>>(
          index, StridedIndex<1>(summed), to, from, vectors, repeats);
    } else {
      accumulate_kernel<1><<<blocks_for(vectors), kThreads, 0, stream>>>(index, StridedIndex<1>(summed), to,
                                                                         from, vectors, repeats);
    }
    CUDA_CHECK_LAUNCH();
  });
}

void fill(const Tensor& destination, double value) {
  DeviceGuard guard(destination.device());
  const cudaStream_t stream = stream_of(destination);
  if (value == 0 && !std::signbit(value) && destination.is_contiguous()) {
    CUDA_CHECK(
        cudaMemsetAsync(destination.data_ptr(), 0, static_cast<std::size_t>(destination.nbytes()), stream));
    return;
  }
  ERGON_CHECK(destination.numel() < std::int64_t{1} << 31,
              "[fill] a tensor of shape {} on cuda: expected fewer than 2^31 elements", destination.shape());
  const StridedLoop<1> loop = merge_dims<1>(destination.shape(), {destination.strides()});
  dispatch_all(destination.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bits(destination.dtype(), [&](auto bits_tag) {
      using Bits = typename decltype(bits_tag)::type;
      if constexpr (sizeof(Bits) == sizeof(T)) {
        fill_typed(loop, static_cast<Bits*>(destination.data_ptr()),
                   std::bit_cast<Bits>(host_convert<T>(value)), destination.numel(), stream);
      }
    });
  });
}

}  // namespace ergon::detail::cuda
