#pragma once

// Shapes and strides: up to eight int64 values, stored in place.

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"

namespace ergon {

class Dims {
 public:
  static constexpr int kMaxDims = 8;

  Dims() = default;
  Dims(std::initializer_list<std::int64_t> values) : Dims(std::span(values.begin(), values.size())) {}
  Dims(const std::vector<std::int64_t>& values) : Dims(std::span(values)) {}  // NOLINT(runtime/explicit)
  explicit Dims(std::span<const std::int64_t> values) {
    ERGON_CHECK(values.size() <= kMaxDims, "{} dimensions: at most {} are supported", values.size(),
                kMaxDims);
    for (std::int64_t value : values) values_[size_++] = value;
  }
  // `size` copies of `value`.
  static Dims filled(int size, std::int64_t value) {
    Dims dims;
    for (int i = 0; i < size; ++i) dims.push_back(value);
    return dims;
  }

  int size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::int64_t& operator[](int i) { return values_[i]; }
  std::int64_t operator[](int i) const { return values_[i]; }
  std::int64_t back() const { return values_[size_ - 1]; }
  std::int64_t& back() { return values_[size_ - 1]; }
  const std::int64_t* begin() const { return values_.data(); }
  const std::int64_t* end() const { return values_.data() + size_; }
  std::int64_t* begin() { return values_.data(); }
  std::int64_t* end() { return values_.data() + size_; }

  void push_back(std::int64_t value) { insert(size_, value); }
  void insert(int position, std::int64_t value) {
    ERGON_CHECK(size_ < kMaxDims, "{} dimensions: at most {} are supported", size_ + 1, kMaxDims);
    for (int i = size_; i > position; --i) values_[i] = values_[i - 1];
    values_[position] = value;
    ++size_;
  }
  void erase(int position) {
    for (int i = position; i + 1 < size_; ++i) values_[i] = values_[i + 1];
    --size_;
  }

  friend bool operator==(const Dims& a, const Dims& b) {
    if (a.size_ != b.size_) return false;
    for (int i = 0; i < a.size_; ++i) {
      if (a.values_[i] != b.values_[i]) return false;
    }
    return true;
  }

 private:
  std::array<std::int64_t, kMaxDims> values_{};
  int size_ = 0;
};

using Shape = Dims;    // elements along each dimension
using Strides = Dims;  // elements to step along each dimension

// The product of all dimensions; 1 for a scalar. Throws Error when it does not fit in int64.
std::int64_t numel(const Shape& shape);

// Row-major strides of a dense tensor.
Strides contiguous_strides(const Shape& shape);

// NumPy's rule; throws Error naming `op` and both shapes when they do not match.
Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op);

// Maps a dimension in [-ndim, ndim) to [0, ndim); throws Error naming `op` otherwise.
int wrap_dim(std::int64_t dim, int ndim, const char* op);

// "(2, 3, 64)".
std::string to_string(const Dims& dims);

}  // namespace ergon

template <>
struct fmt::formatter<ergon::Dims> {
  constexpr auto parse(format_parse_context& context) { return context.begin(); }  // no format specification
  template <class Context>
  auto format(const ergon::Dims& dims, Context& context) const {
    const std::string text = ergon::to_string(dims);
    return std::copy(text.begin(), text.end(), context.out());
  }
};
