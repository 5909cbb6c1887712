#pragma once

// Strided copies with conversion, below autograd. `source` must broadcast to destination.shape().

#include "core/tensor.h"

namespace ergon::detail {

// destination = source, converted to destination's dtype (floating point to integer truncates; to bool:
// non-zero). The tensors may be on different devices; non_blocking as for Tensor::copy_.
void copy(const Tensor& destination, const Tensor& source, bool non_blocking = false);

// destination += source, both of destination's floating-point dtype. Destination elements may repeat (stride
// 0): then their sum is built up in order.
void accumulate(const Tensor& destination, const Tensor& source);

// The sum of `tensor` over its broadcast dimensions: the inverse of tensor.expand. Half precision is summed
// in fp32.
Tensor sum_to(const Tensor& tensor, const Shape& shape);

void fill(const Tensor& destination, double value);

}  // namespace ergon::detail
