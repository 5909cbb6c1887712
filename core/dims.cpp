#include "core/dims.h"

#include <algorithm>

namespace ergon {

std::int64_t numel(const Shape& shape) {
  std::int64_t count = 1;
  for (std::int64_t size : shape) {
    ERGON_CHECK(!__builtin_mul_overflow(count, size, &count), "shape {} has more than 2^63 elements", shape);
  }
  return count;
}

Strides contiguous_strides(const Shape& shape) {
  Strides strides = Dims::filled(shape.size(), 1);
  for (int i = shape.size() - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * std::max<std::int64_t>(shape[i + 1], 1);
  return strides;
}

Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op) {
  if (a == b) return a;
  const int ndim = std::max(a.size(), b.size());
  Shape result = Dims::filled(ndim, 1);
  for (int i = 1; i <= ndim; ++i) {
    const std::int64_t from_a = i <= a.size() ? a[a.size() - i] : 1;
    const std::int64_t from_b = i <= b.size() ? b[b.size() - i] : 1;
    ERGON_CHECK(from_a == from_b || from_a == 1 || from_b == 1,
                "[{}] shapes {} and {} do not broadcast: sizes {} and {} at dimension {} from the end", op, a,
                b, from_a, from_b, i);
    result[ndim - i] = from_a == 1 ? from_b : from_a;
  }
  return result;
}

int wrap_dim(std::int64_t dim, int ndim, const char* op) {
  const int range = std::max(ndim, 1);
  ERGON_CHECK(dim >= -range && dim < range, "[{}] dimension {}: expected one in [{}, {})", op, dim, -range,
              range);
  return static_cast<int>(dim < 0 ? dim + range : dim);
}

std::string to_string(const Dims& dims) {
  std::string text = "(";
  for (int i = 0; i < dims.size(); ++i) text += fmt::format("{}{}", i > 0 ? ", " : "", dims[i]);
  return text + (dims.size() == 1 ? ",)" : ")");
}

}  // namespace ergon
