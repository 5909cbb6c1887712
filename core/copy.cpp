#include "core/copy.h"

#include <algorithm>
#include <array>

#include "core/autograd.h"
#include "core/convert.h"
#include "core/cuda_backend.h"
#include "core/half.h"
#include "core/strided_loop.h"
#include "core/tensor_impl.h"

namespace ergon::detail {
namespace {

template <class To, class From>
void copy_row(To* to, std::int64_t to_stride, const From* from, std::int64_t from_stride,
              std::int64_t length) {
  if (to_stride == 1 && from_stride == 1) {
    convert_run(from, to, length);
  } else if (to_stride == 1 && from_stride == 0) {
    std::fill_n(to, length, convert<To>(from[0]));
  } else {
    for (std::int64_t i = 0; i < length; ++i) to[i * to_stride] = convert<To>(from[i * from_stride]);
  }
}

// to[i] += from[i], contiguous: half precision by way of buffers, whose conversion vectorises.
template <class T>
void add_run(const T* from, T* to, std::int64_t length) {
  if constexpr (is_half(dtype_of<T>())) {
    constexpr std::int64_t kRun = 256;
    std::array<float, kRun> sum, term;
    for (std::int64_t i = 0; i < length; i += kRun) {
      const std::int64_t count = std::min(kRun, length - i);
      convert_run(to + i, sum.data(), count);
      convert_run(from + i, term.data(), count);
      for (std::size_t k = 0; k < static_cast<std::size_t>(count); ++k) sum[k] += term[k];
      convert_run(sum.data(), to + i, count);
    }
  } else {
    for (std::int64_t i = 0; i < length; ++i) to[i] += from[i];
  }
}

// The merged loop over destination and source. Dimensions go in the order of the destination's strides; for a
// transposed source the two innermost dimensions are walked in blocks that fit the L1 cache.
StridedLoop<2> plan(const Tensor& destination, const Tensor& source) {
  const Tensor expanded = source.shape() == destination.shape() ? source : source.expand(destination.shape());
  return merge_dims<2>(destination.shape(), {destination.strides(), expanded.strides()});
}

template <class T>
void copy_transposed(const StridedLoop<2>& loop, T* to, const T* from) {
  constexpr std::int64_t kBlock = 32;
  const int last = loop.shape.size() - 1;
  const std::int64_t rows = loop.shape[last - 1], cols = loop.shape[last];
  const std::int64_t to_row = loop.strides[0][last - 1], from_col = loop.strides[1][last];
  StridedLoop<2> outer = loop;  // one block of rows an element of the last dimension
  outer.shape.erase(last);
  outer.shape.back() = (rows + kBlock - 1) / kBlock;
  for (Strides& strides : outer.strides) {
    strides.erase(last);
    strides.back() *= kBlock;
  }
  const std::int64_t blocks = outer.rows() * outer.row_length();
  parallel_for(0, blocks, std::max<std::int64_t>(16384 / (kBlock * cols), 1),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t block = begin; block < end; ++block) {
                   std::int64_t remaining = block, to_offset = 0, from_offset = 0;
                   for (int dim = outer.shape.size() - 1; dim >= 0; --dim) {
                     const std::int64_t index = remaining % outer.shape[dim];
                     remaining /= outer.shape[dim];
                     to_offset += index * outer.strides[0][dim];
                     from_offset += index * outer.strides[1][dim];
                   }
                   const std::int64_t height = std::min(kBlock, rows - block % outer.shape.back() * kBlock);
                   for (std::int64_t col = 0; col < cols; col += kBlock) {
                     const std::int64_t width = std::min(kBlock, cols - col);
                     for (std::int64_t r = 0; r < height; ++r) {
                       T* to_line = to + to_offset + r * to_row + col;
                       const T* from_line = from + from_offset + r + col * from_col;
                       for (std::int64_t c = 0; c < width; ++c) to_line[c] = from_line[c * from_col];
                     }
                   }
                 }
               });
}

template <class To, class From>
void copy_typed(const StridedLoop<2>& loop, To* to, const From* from) {
  if constexpr (std::is_same_v<To, From>) {
    const int last = loop.shape.size() - 1;
    if (last >= 1 && loop.strides[0][last] == 1 && loop.strides[1][last] != 1
        && loop.strides[1][last - 1] == 1) {
      copy_transposed(loop, to, from);
      return;
    }
  }
  const std::int64_t to_stride = loop.strides[0].back(), from_stride = loop.strides[1].back();
  for_each_row(loop, [&](const auto& offsets, std::int64_t length) {
    copy_row(to + offsets[0], to_stride, from + offsets[1], from_stride, length);
  });
}

// Converts and lines up on either side of the transfer, the smaller dtype's.
void copy_to_device(const Tensor& destination, const Tensor& source, bool non_blocking) {
  NoGradGuard no_grad;
  const bool narrow_first = size_of(destination.dtype()) < size_of(source.dtype());
  const Tensor sent = (narrow_first ? source.to(destination.dtype()) : source).contiguous();
  if (destination.is_contiguous() && destination.dtype() == sent.dtype()
      && destination.shape() == sent.shape()) {
    return cuda::copy_across(destination, sent, non_blocking);
  }
  const Tensor arrived = empty(sent.shape(), {sent.dtype(), destination.device()});
  cuda::copy_across(arrived, sent, false);
  copy(destination, arrived);
}

}  // namespace

void copy(const Tensor& destination, const Tensor& source, bool non_blocking) {
  if (destination.numel() == 0) return;
  if (destination.device() != source.device()) return copy_to_device(destination, source, non_blocking);
  if (destination.device().is_cuda()) return cuda::copy(destination, source);
  const StridedLoop<2> loop = plan(destination, source);
  dispatch_all(destination.dtype(), [&](auto to_tag) {
    using To = typename decltype(to_tag)::type;
    dispatch_all(source.dtype(), [&](auto from_tag) {
      using From = typename decltype(from_tag)::type;
      copy_typed(loop, static_cast<To*>(destination.data_ptr()), static_cast<const From*>(source.data_ptr()));
    });
  });
}

void accumulate(const Tensor& destination, const Tensor& source) {
  if (destination.numel() == 0) return;
  ERGON_INTERNAL_ASSERT(destination.dtype() == source.dtype() && destination.device() == source.device());
  if (destination.device().is_cuda()) return cuda::accumulate(destination, source);
  const StridedLoop<2> loop = plan(destination, source);
  bool repeats = false;
  for (std::int64_t stride : loop.strides[0]) repeats |= stride == 0;
  dispatch_floating(destination.dtype(), "accumulate", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    T* to = static_cast<T*>(destination.data_ptr());
    const T* from = static_cast<const T*>(source.data_ptr());
    const std::int64_t to_stride = loop.strides[0].back(), from_stride = loop.strides[1].back();
    for_each_row(
        loop,
        [&](const auto& offsets, std::int64_t length) {
          T* to_row = to + offsets[0];
          const T* from_row = from + offsets[1];
          if (to_stride == 1 && from_stride == 1) {
            add_run(from_row, to_row, length);
          } else {
            for (std::int64_t i = 0; i < length; ++i) {
              to_row[i * to_stride] = T(Acc(to_row[i * to_stride]) + Acc(from_row[i * from_stride]));
            }
          }
        },
        repeats);
  });
}

Tensor sum_to(const Tensor& tensor, const Shape& shape) {
  if (tensor.shape() == shape) return tensor;
  const DType dtype = is_half(tensor.dtype()) ? DType::f32 : tensor.dtype();
  const Tensor sum = zeros(shape, {dtype, tensor.device()});
  accumulate(sum.expand(tensor.shape()), tensor.to(dtype));
  return sum.to(tensor.dtype());
}

void fill(const Tensor& destination, double value) {
  if (destination.numel() == 0) return;
  if (destination.device().is_cuda()) return cuda::fill(destination, value);
  const StridedLoop<1> loop = merge_dims<1>(destination.shape(), {destination.strides()});
  dispatch_all(destination.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = static_cast<T*>(destination.data_ptr());
    const T element = convert<T>(value);
    for_each_row(loop, [&](const auto& offsets, std::int64_t length) {
      const std::int64_t stride = loop.strides[0].back();
      for (std::int64_t i = 0; i < length; ++i) to[offsets[0] + i * stride] = element;
    });
  });
}

}  // namespace ergon::detail
