#include "ops/elementwise.h"

#include "ops/dispatch.h"

namespace ergon::ops::detail {
namespace {

// Where a scalar lives until the kernel has been called.
struct ScalarMemory {
  explicit ScalarMemory(const Scalar& scalar) : real(scalar.real()), integer(scalar.integer()) {}
  double real;
  std::int64_t integer;
};

kernels::Operand argument_operand(const Argument& argument, ScalarMemory& memory, const Shape& shape,
                                  DType compute) {
  if (argument.is_tensor()) return detail::operand(argument.tensor(), shape);
  const bool whole = compute == DType::i64;
  return {.data = whole ? static_cast<void*>(&memory.integer) : &memory.real,
          .dtype = whole ? DType::i64 : DType::f64,
          .strides = Dims::filled(shape.size(), 0),
          .is_number = true};
}

// A new tensor of the shape that the tensors among the arguments broadcast to, on their device.
Tensor empty_result(const char* name, std::initializer_list<const Argument*> arguments, DType dtype) {
  Shape shape;
  Device device;
  for (const Argument* argument : arguments) {
    if (!argument->is_tensor()) continue;
    shape = broadcast_shapes(shape, argument->tensor().shape(), name);
    device = argument->tensor().device();
  }
  return empty(shape, {dtype, device});
}

void run_binary(BinaryOp op, const Tensor& y, const Argument& a, const Argument& b, DType compute) {
  const Shape& shape = y.shape();
  ScalarMemory memory_a(a.scalar()), memory_b(b.scalar());
  ERGON_KERNEL(y.device(), binary, op, compute, shape, operand(y, shape),
               argument_operand(a, memory_a, shape, compute), argument_operand(b, memory_b, shape, compute));
}

}  // namespace

const Tensor Argument::kNone;

DType result_type(const char* name, const Argument& a, const Argument& b) {
  for (const Argument* argument : {&a, &b}) {
    ERGON_CHECK(!argument->is_tensor() || argument->tensor().defined(), "[{}] a tensor is undefined", name);
  }
  if (a.is_tensor() && b.is_tensor()) return promote(a.tensor().dtype(), b.tensor().dtype());
  const DType dtype = a.is_tensor() ? a.tensor().dtype() : b.tensor().dtype();
  const Scalar& scalar = a.is_tensor() ? b.scalar() : a.scalar();
  if (scalar.is_floating_point()) return floating_result(dtype);
  return dtype == DType::boolean ? DType::i64 : dtype;
}

DType floating_result(DType dtype) { return is_floating_point(dtype) ? dtype : DType::f32; }

DType compute_type(DType dtype) {
  if (dtype == DType::f64) return DType::f64;
  return is_floating_point(dtype) ? DType::f32 : DType::i64;
}

Strides broadcast_strides(const Tensor& tensor, const Shape& shape) {
  Strides strides = Dims::filled(shape.size(), 0);
  const int added = shape.size() - tensor.dim();
  for (int dim = 0; dim < tensor.dim(); ++dim) {
    if (tensor.shape()[dim] == shape[added + dim]) strides[added + dim] = tensor.strides()[dim];
  }
  return strides;
}

kernels::Operand operand(const Tensor& tensor, const Shape& shape) {
  return {tensor.data_ptr(), tensor.dtype(), broadcast_strides(tensor, shape)};
}

Tensor unary(const char* name, UnaryOp op, const Tensor& x, DType dtype) {
  const OpScope scope(name, x);
  Tensor y = empty(x.shape(), {dtype, x.device()});
  ERGON_KERNEL(x.device(), unary, op, compute_type(dtype), x.shape(), operand(y, x.shape()),
               operand(x, x.shape()));
  return y;
}

Tensor binary(const char* name, BinaryOp op, const Argument& a, const Argument& b, DType compute_as,
              DType dtype) {
  const OpScope scope(name, a.tensor(), b.tensor());
  Tensor y = empty_result(name, {&a, &b}, dtype);
  run_binary(op, y, a, b, compute_type(compute_as));
  return y;
}

void binary_into(const char* name, BinaryOp op, const Tensor& output, const Argument& a, const Argument& b,
                 DType compute_as) {
  const OpScope scope(name, output, a.tensor(), b.tensor());
  run_binary(op, output, a, b, compute_type(compute_as));
}

Tensor ternary(const char* name, TernaryOp op, const Argument& a, const Argument& b, const Argument& c,
               DType dtype) {
  const OpScope scope(name, a.tensor(), b.tensor(), c.tensor());
  Tensor y = empty_result(name, {&a, &b, &c}, dtype);
  const Shape& shape = y.shape();
  const DType compute = compute_type(dtype);
  ScalarMemory memory_a(a.scalar()), memory_b(b.scalar()), memory_c(c.scalar());
  ERGON_KERNEL(y.device(), ternary, op, compute, shape, operand(y, shape),
               argument_operand(a, memory_a, shape, compute), argument_operand(b, memory_b, shape, compute),
               argument_operand(c, memory_c, shape, compute));
  return y;
}

}  // namespace ergon::ops::detail
