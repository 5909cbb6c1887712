#include "ops/elementwise.h"

namespace ergon::ops::detail {
namespace {

// Where a scalar lives while a kernel reads it.
struct ScalarMemory {
  explicit ScalarMemory(const Scalar& scalar) : real(scalar.real()), integer(scalar.integer()) {}
  double real;
  std::int64_t integer;
};

kernels::Operand operand(const Argument& argument, ScalarMemory& memory, const Shape& shape, DType compute) {
  if (argument.is_tensor()) return detail::operand(argument.tensor(), shape);
  const Strides strides = Dims::filled(shape.size(), 0);
  if (compute == DType::i64) return {&memory.integer, DType::i64, strides};
  return {&memory.real, DType::f64, strides};
}

// The one place where the device of an elementwise op is chosen.
void check_device(const char* name, Device device) {
  ERGON_CHECK(device.is_cpu(), "[{}] no kernel for device {}", name, to_string(device));
}

Shape common_shape(const char* name, std::initializer_list<const Argument*> arguments, Device& device) {
  Shape shape;
  const Tensor* first = nullptr;
  for (const Argument* argument : arguments) {
    if (!argument->is_tensor()) continue;
    const Tensor& tensor = argument->tensor();
    if (first == nullptr) {
      first = &tensor;
      device = tensor.device();
      shape = tensor.shape();
    } else {
      ERGON_CHECK(tensor.device() == device, "[{}] tensors on {} and {}: expected one device", name,
                  to_string(device), to_string(tensor.device()));
      shape = broadcast_shapes(shape, tensor.shape(), name);
    }
  }
  return shape;
}

}  // namespace

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
  check_device(name, x.device());
  Tensor y = empty(x.shape(), {dtype, x.device()});
  kernels::cpu::unary(op, compute_type(dtype), x.shape(), operand(y, x.shape()), operand(x, x.shape()));
  return y;
}

Tensor binary(const char* name, BinaryOp op, const Argument& a, const Argument& b, DType compute_as,
              DType dtype) {
  Device device;
  const Shape shape = common_shape(name, {&a, &b}, device);
  Tensor y = empty(shape, {dtype, device});
  binary_into(name, op, y, a, b, compute_as);
  return y;
}

void binary_into(const char* name, BinaryOp op, const Tensor& output, const Argument& a, const Argument& b,
                 DType compute_as) {
  check_device(name, output.device());
  const DType compute = compute_type(compute_as);
  const Shape& shape = output.shape();
  ScalarMemory memory_a(a.scalar()), memory_b(b.scalar());
  kernels::cpu::binary(op, compute, shape, operand(output, shape), operand(a, memory_a, shape, compute),
                       operand(b, memory_b, shape, compute));
}

Tensor ternary(const char* name, TernaryOp op, const Argument& a, const Argument& b, const Argument& c,
               DType dtype) {
  Device device;
  const Shape shape = common_shape(name, {&a, &b, &c}, device);
  check_device(name, device);
  Tensor y = empty(shape, {dtype, device});
  const DType compute = compute_type(dtype);
  ScalarMemory memory_a(a.scalar()), memory_b(b.scalar()), memory_c(c.scalar());
  kernels::cpu::ternary(op, compute, shape, operand(y, shape), operand(a, memory_a, shape, compute),
                        operand(b, memory_b, shape, compute), operand(c, memory_c, shape, compute));
  return y;
}

}  // namespace ergon::ops::detail
