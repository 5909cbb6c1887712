#include "kernels/cuda/elementwise_loop.cuh"

namespace ergon::kernels::cuda {

void binary(BinaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
            const Operand& b) {
  elementwise<BinaryOp, 3>(op, compute, shape, {y, a, b});
}

}  // namespace ergon::kernels::cuda
