// The in-place ops of arithmetic.h.

#include <algorithm>

#include "core/autograd.h"
#include "core/op_scope.h"
#include "core/tensor_impl.h"
#include "ops/arithmetic.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"

namespace ergon::ops {
namespace {

using autograd::Gradients;
using autograd::NeedsGrad;
using autograd::SavedTensor;
using detail::Argument;
using detail::BinaryOp;
using detail::RestoreInput;

// bool, integer, floating point.
int kind(DType dtype) { return dtype == DType::boolean ? 0 : is_floating_point(dtype) ? 2 : 1; }

// Bytes [first, last) that a tensor's elements lie in.
std::pair<std::int64_t, std::int64_t> extent(const Tensor& tensor) {
  std::int64_t last = tensor.impl()->offset + 1;
  for (int dim = 0; dim < tensor.dim(); ++dim) last += (tensor.shape()[dim] - 1) * tensor.strides()[dim];
  const std::int64_t size = size_of(tensor.dtype());
  return {tensor.impl()->offset * size, last * size};
}

// Would writing `self` change elements of `other` before they are read?
bool overlaps(const Tensor& self, const Tensor& other) {
  if (self.impl()->storage != other.impl()->storage || self.numel() == 0 || other.numel() == 0) return false;
  if (self.data_ptr() == other.data_ptr() && self.shape() == other.shape()
      && self.strides() == other.strides() && self.dtype() == other.dtype()) {
    return false;  // each element is read just before it is written
  }
  const auto [self_first, self_last] = extent(self);
  const auto [other_first, other_last] = extent(other);
  return self_first < other_last && other_first < self_last;
}

void check(const char* name, const Tensor& self, const Argument& other) {
  const DType dtype = detail::result_type(name, self, other);
  ERGON_CHECK(kind(dtype) <= kind(self.dtype()),
              "[{}] a result of dtype {} cannot be stored in a tensor of {}", name, name_of(dtype),
              name_of(self.dtype()));
  for (int dim = 0; dim < self.dim(); ++dim) {
    ERGON_CHECK(self.shape()[dim] <= 1 || self.strides()[dim] != 0,
                "[{}] shape {} with strides {}: elements share memory, clone the tensor first", name,
                self.shape(), self.strides());
  }
  if (!other.is_tensor()) return autograd::check_inplace(name, self);
  const Tensor& tensor = other.tensor();
  ERGON_CHECK(broadcast_shapes(self.shape(), tensor.shape(), name) == self.shape(),
              "[{}] shape {} does not broadcast to {}, which stays as it is in place", name, tensor.shape(),
              self.shape());
  autograd::check_inplace(name, self, std::span(&tensor, 1));
}

void apply(const char* name, BinaryOp op, const Tensor& self, const Argument& other) {
  const DType compute_as = detail::result_type(name, self, other);
  if (other.is_tensor() && overlaps(self, other.tensor())) {
    NoGradGuard no_grad;
    const Tensor copy = other.tensor().clone();
    return detail::binary_into(name, op, self, self, copy, compute_as);
  }
  detail::binary_into(name, op, self, self, other, compute_as);
}

// self += factor * other for factor 1 or -1.
Tensor& accumulate(const char* name, BinaryOp op, Tensor& self, const Tensor& other) {
  const OpScope scope(name, self, other);
  check(name, self, other);
  apply(name, op, self, other);
  autograd::record_inplace(
      name, self, {other},
      [op, restore = RestoreInput(other)](const Tensor& grad_output, const NeedsGrad& needs) {
        Gradients grads(2);
        if (needs[0]) grads[0] = grad_output;
        if (needs[1]) {
          const Tensor grad = restore(grad_output);
          grads[1] = op == BinaryOp::sub ? neg(grad) : grad;
        }
        return grads;
      });
  return self;
}

Tensor& accumulate(const char* name, BinaryOp op, Tensor& self, Scalar other) {
  check(name, self, other);
  apply(name, op, self, other);
  autograd::record_inplace(
      name, self, {}, [](const Tensor& grad_output, const NeedsGrad&) { return Gradients{grad_output}; });
  return self;
}

}  // namespace

Tensor& add_(Tensor& self, const Tensor& other) { return accumulate("add_", BinaryOp::add, self, other); }
Tensor& add_(Tensor& self, Scalar other) { return accumulate("add_", BinaryOp::add, self, other); }
Tensor& sub_(Tensor& self, const Tensor& other) { return accumulate("sub_", BinaryOp::sub, self, other); }
Tensor& sub_(Tensor& self, Scalar other) { return accumulate("sub_", BinaryOp::sub, self, other); }

Tensor& mul_(Tensor& self, const Tensor& other) {
  const OpScope scope("mul_", self, other);
  check("mul_", self, other);
  // The old value is the other factor's gradient: it is kept only if that one wants it.
  const bool recording = grad_enabled();
  SavedTensor old_self, factor;
  if (recording && other.requires_grad()) old_self = autograd::save(self.detach().clone());
  if (recording && self.requires_grad()) {
    factor = autograd::save(overlaps(self, other) || self.is_same(other) ? other.detach().clone() : other);
  }
  apply("mul_", BinaryOp::mul, self, other);
  autograd::record_inplace(
      "mul_", self, {other},
      [old_self, factor, restore = RestoreInput(other)](const Tensor& grad_output, const NeedsGrad& needs) {
        Gradients grads(2);
        if (needs[0]) grads[0] = mul(grad_output, factor.get()).to(grad_output.dtype());
        if (needs[1]) grads[1] = restore(mul(grad_output, old_self.get()));
        return grads;
      });
  return self;
}

Tensor& mul_(Tensor& self, Scalar other) {
  check("mul_", self, other);
  apply("mul_", BinaryOp::mul, self, other);
  autograd::record_inplace("mul_", self, {}, [other](const Tensor& grad_output, const NeedsGrad&) {
    return Gradients{mul(grad_output, other)};
  });
  return self;
}

}  // namespace ergon::ops
