#pragma once

// What the elementwise ops are built from: checks, result types, allocation, and the choice of device.
// Without gradients; users want arithmetic.h and activation.h.

#include <initializer_list>
#include <span>

#include "core/tensor.h"
#include "kernels/elementwise.h"
#include "ops/scalar.h"

namespace ergon::ops::detail {

using kernels::BinaryOp;
using kernels::TernaryOp;
using kernels::UnaryOp;

// A tensor or a number: what an elementwise op takes. Does not own the tensor.
class Argument {
 public:
  Argument(const Tensor& tensor) : tensor_(&tensor) {}
  Argument(Scalar scalar) : scalar_(scalar) {}

  bool is_tensor() const { return tensor_ != nullptr; }
  const Tensor& tensor() const { return is_tensor() ? *tensor_ : kNone; }  // undefined for a number
  const Scalar& scalar() const { return scalar_; }

 private:
  static const Tensor kNone;

  const Tensor* tensor_ = nullptr;
  Scalar scalar_ = 0;
};

// The dtype that a and b combine to: promote() for two tensors; a number changes an integer tensor to f32 if
// it is floating point, and a bool tensor to i64 if it is whole. Throws Error for an undefined tensor.
DType result_type(const char* name, const Argument& a, const Argument& b);

// f32 for integers and bool, else the same: the type of exp, div, mean, ...
DType floating_result(DType dtype);

// The type that a result of this type is computed in: f32, f64 or i64.
DType compute_type(DType dtype);

// The strides of `tensor` seen as `shape`, which it broadcasts to.
Strides broadcast_strides(const Tensor& tensor, const Shape& shape);
kernels::Operand operand(const Tensor& tensor, const Shape& shape);

// New tensors. Errors name `name`.
Tensor unary(const char* name, UnaryOp op, const Tensor& x, DType dtype);
// `compute_as`: the operands are compared or combined in this type (result_type); `dtype`: what comes out.
Tensor binary(const char* name, BinaryOp op, const Argument& a, const Argument& b, DType compute_as,
              DType dtype);
Tensor ternary(const char* name, TernaryOp op, const Argument& a, const Argument& b, const Argument& c,
               DType dtype);

// output = op(a, b) into existing memory of the right shape. `output` may be a (in place).
void binary_into(const char* name, BinaryOp op, const Tensor& output, const Argument& a, const Argument& b,
                 DType compute_as);

}  // namespace ergon::ops::detail
