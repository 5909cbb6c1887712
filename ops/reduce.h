#pragma once

// Reductions over all elements or over given dimensions.
//
// bf16 and f16 are accumulated in fp32 and rounded once; f32 in fp32, f64 in fp64. Sums are built up as a
// tree, so that the error is at most 25 + log2(n) roundings of the sum of the absolute values (40 + log2(n)
// in f64), for n elements. The order of the additions depends on shape and strides alone: the same bits for
// any number of threads. An empty list of dimensions means all of them. Results drop the dimensions unless
// `keepdim` (size 1). Dimensions out of range or named twice throw Error, as does the maximum of no elements.

#include "core/tensor.h"

namespace ergon::ops {

// Integers and bool sum to i64. The sum of no elements is 0.
Tensor sum(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
// Integers give f32. The mean of no elements is NaN.
Tensor mean(const Tensor& x, const Dims& dims = {}, bool keepdim = false);

// The largest or smallest element; NaN if there is one. In a tie the gradient is shared evenly.
Tensor amax(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
Tensor amin(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
inline Tensor max(const Tensor& x) { return amax(x); }
inline Tensor min(const Tensor& x) { return amin(x); }

struct ValuesAndIndices {
  Tensor values;   // x's dtype
  Tensor indices;  // i64, along the reduced dimension
};

// Along one dimension, with where it was found: the first of equals (the first NaN if there is one), which
// also gets the whole gradient.
ValuesAndIndices max(const Tensor& x, std::int64_t dim, bool keepdim = false);
ValuesAndIndices min(const Tensor& x, std::int64_t dim, bool keepdim = false);

// The index of the first largest or smallest element: in the flattened tensor, or along `dim`.
Tensor argmax(const Tensor& x);
Tensor argmax(const Tensor& x, std::int64_t dim, bool keepdim = false);
Tensor argmin(const Tensor& x);
Tensor argmin(const Tensor& x, std::int64_t dim, bool keepdim = false);

// The sum over the dimensions along which `shape` was broadcast to x.shape(): the inverse of x.expand.
Tensor sum_to_shape(const Tensor& x, const Shape& shape);

namespace detail {

// Brings the gradient of a broadcast result back to an input's shape and dtype. Holds no data.
class RestoreInput {
 public:
  explicit RestoreInput(const Tensor& input);  // an undefined input wants no gradient
  Tensor operator()(const Tensor& grad) const { return sum_to_shape(grad, shape_).to(dtype_); }

 private:
  Shape shape_;
  DType dtype_ = DType::f32;
};

}  // namespace detail
}  // namespace ergon::ops
