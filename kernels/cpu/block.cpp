#include "kernels/cpu/block.h"

#include <algorithm>
#include <type_traits>

#include "core/convert.h"

namespace ergon::kernels::cpu {
namespace {

template <class T, class From>
void gather(const Block& block, T* buffer) {
  const From* from = static_cast<const From*>(block.data);
  if (block.is_dense()) return convert_run(from, buffer, block.size());
  if (block.col_stride == 1) {
    for (std::int64_t r = 0; r < block.rows; ++r) {
      convert_run(from + r * block.row_stride, buffer + r * block.cols, block.cols);
    }
  } else if (block.col_stride == 0) {
    for (std::int64_t r = 0; r < block.rows; ++r) {
      std::fill_n(buffer + r * block.cols, block.cols, convert<T>(from[r * block.row_stride]));
    }
  } else if (block.row_stride == 1) {  // transposed: read along the rows of memory
    for (std::int64_t c = 0; c < block.cols; ++c) {
      const From* column = from + c * block.col_stride;
      for (std::int64_t r = 0; r < block.rows; ++r) buffer[r * block.cols + c] = convert<T>(column[r]);
    }
  } else {
    for (std::int64_t r = 0; r < block.rows; ++r) {
      const From* row = from + r * block.row_stride;
      T* to = buffer + r * block.cols;
      for (std::int64_t c = 0; c < block.cols; ++c) to[c] = convert<T>(row[c * block.col_stride]);
    }
  }
}

template <class T, class To>
void scatter(const T* values, const Block& block) {
  To* to = static_cast<To*>(block.data);
  if (block.is_dense()) return convert_run(values, to, block.size());
  for (std::int64_t r = 0; r < block.rows; ++r) {
    To* row = to + r * block.row_stride;
    const T* from = values + r * block.cols;
    if (block.col_stride == 1) {
      convert_run(from, row, block.cols);
    } else {
      for (std::int64_t c = 0; c < block.cols; ++c) row[c * block.col_stride] = convert<To>(from[c]);
    }
  }
}

// Integers are not computed with in floating point, nor is floating point in integers. Halves stay as they
// are.
template <class T, class Storage>
constexpr bool kSupported = is_half(dtype_of<T>())
                                ? std::is_same_v<T, Storage>
                                : std::is_floating_point_v<T> || !is_floating_point(dtype_of<Storage>());
// Results of integer arithmetic stay integers, those of floating point become floating point or bool.
template <class T, class Storage>
constexpr bool kStorable =
    is_half(dtype_of<T>())
        ? std::is_same_v<T, Storage>
        : std::is_same_v<Storage,
                         bool> || std::is_floating_point_v<T> == is_floating_point(dtype_of<Storage>());

}  // namespace

template <class T>
const T* load(const Block& block, T* buffer) {
  if (block.dtype == dtype_of<T>() && block.is_dense()) return static_cast<const T*>(block.data);
  dispatch_all(block.dtype, [&](auto tag) {
    using From = typename decltype(tag)::type;
    if constexpr (kSupported<T, From>) {
      gather<T, From>(block, buffer);
    } else {
      ERGON_INTERNAL_ASSERT(false);
    }
  });
  return buffer;
}

template <class T>
void store(const T* values, const Block& block) {
  if (values == block.data) return;
  dispatch_all(block.dtype, [&](auto tag) {
    using To = typename decltype(tag)::type;
    if constexpr (kStorable<T, To>) {
      scatter<T, To>(values, block);
    } else {
      ERGON_INTERNAL_ASSERT(false);
    }
  });
}

#define ERGON_INSTANTIATE(T)                   \
  template const T* load<T>(const Block&, T*); \
  template void store<T>(const T*, const Block&);
ERGON_INSTANTIATE(float)
ERGON_INSTANTIATE(double)
ERGON_INSTANTIATE(bf16)
ERGON_INSTANTIATE(f16)
ERGON_INSTANTIATE(std::int64_t)
#undef ERGON_INSTANTIATE

}  // namespace ergon::kernels::cpu
