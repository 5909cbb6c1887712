#include "kernels/cuda/elementwise_loop.cuh"

namespace ergon::kernels::cuda {

void ternary(TernaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
             const Operand& b, const Operand& c) {
  elementwise<TernaryOp, 4>(op, compute, shape, {y, a, b, c});
}

}  // namespace ergon::kernels::cuda
