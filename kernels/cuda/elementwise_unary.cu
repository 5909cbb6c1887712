#include "kernels/cuda/elementwise_loop.cuh"

namespace ergon::kernels::cuda {

void unary(UnaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& x) {
  elementwise<UnaryOp, 2>(op, compute, shape, {y, x});
}

}  // namespace ergon::kernels::cuda
