#include "ops/matmul.h"

#include <atomic>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/op_scope.h"
#include "core/strided_loop.h"
#include "ops/gemm.h"
#include "ops/reduce.h"

namespace ergon::ops {
namespace {

std::atomic<bool> tf32_allowed = false;

// out = a b for (..., M, K), (..., K, N), (..., M, N) with equal leading dimensions; strides of 0 are fine in
// a and b.
void batched_product(const Tensor& a, const Tensor& b, const Tensor& out) {
  if (out.numel() == 0) return;
  const int batch_dims = out.dim() - 2;
  Shape batch;
  std::array<Strides, 3> strides;
  const std::array<const Tensor*, 3> operands{&a, &b, &out};
  for (int i = 0; i < batch_dims; ++i) {
    batch.push_back(out.shape()[i]);
    for (std::size_t k = 0; k < 3; ++k) strides[k].push_back(operands[k]->strides()[i]);
  }
  StridedLoop<3> loop = merge_dims<3>(batch, strides);
  if (loop.shape.size() == 1) {
    loop.shape.insert(0, 1);
    for (Strides& s : loop.strides) s.insert(0, 0);
  }
  // The last two batch dimensions go to the kernel, the ones before (rare) are looped over here.
  const int inner = loop.shape.size() - 1;
  std::int64_t repeats = 1;
  for (int i = 0; i + 1 < inner; ++i) repeats *= loop.shape[i];
  for (std::int64_t r = 0; r < repeats; ++r) {
    std::array<std::int64_t, 3> offset{};
    std::int64_t remaining = r;
    for (int i = inner - 2; i >= 0; --i) {
      for (std::size_t k = 0; k < 3; ++k) offset[k] += remaining % loop.shape[i] * loop.strides[k][i];
      remaining /= loop.shape[i];
    }
    const auto operand = [&]<class Pointer>(std::size_t k, Pointer) {
      const Tensor& t = *operands[k];
      return kernels::GemmOperand<Pointer>{static_cast<char*>(t.data_ptr()) + offset[k] * size_of(t.dtype()),
                                           t.dtype(),
                                           t.strides()[batch_dims],
                                           t.strides()[batch_dims + 1],
                                           loop.strides[k][inner - 1],
                                           loop.strides[k][inner]};
    };
    detail::gemm(out.device(), {.M = out.size(-2),
                                .N = out.size(-1),
                                .K = a.size(-1),
                                .batch_outer = loop.shape[inner - 1],
                                .batch_inner = loop.shape[inner],
                                .a = operand(0, static_cast<const void*>(nullptr)),
                                .b = operand(1, static_cast<const void*>(nullptr)),
                                .c = operand(2, static_cast<void*>(nullptr))});
  }
}

Shape with_batch(const Shape& batch, std::int64_t rows, std::int64_t cols) {
  Shape shape = batch;
  shape.push_back(rows);
  shape.push_back(cols);
  return shape;
}

Shape batch_of(const Tensor& t) {
  return Shape(std::span(t.shape().begin(), static_cast<std::size_t>(t.dim() - 2)));
}

// a b with leading dimensions broadcast, below autograd.
Tensor product(const Tensor& a, const Tensor& b, DType dtype) {
  const Shape batch = broadcast_shapes(batch_of(a), batch_of(b), "matmul");
  const Tensor out = empty(with_batch(batch, a.size(-2), b.size(-1)), {dtype, a.device()});
  batched_product(a.expand(with_batch(batch, a.size(-2), a.size(-1))),
                  b.expand(with_batch(batch, b.size(-2), b.size(-1))), out);
  return out;
}

Tensor matrix_product(const Tensor& a_in, const Tensor& b_in) {
  Tensor a, b, out;
  {
    NoGradGuard no_grad;
    std::tie(a, b) = std::tuple_cat(autocast::cast("matmul", a_in, b_in));
    const DType dtype = promote(a.dtype(), b.dtype());
    a = a.to(dtype);
    b = b.to(dtype);
    out = product(a, b, dtype);
  }
  using autograd::save;
  return autograd::record(
      "matmul", out, {a_in, b_in},
      [a = save(a), b = save(b), a_dtype = a_in.dtype(), b_dtype = b_in.dtype()](
          const Tensor& grad_output, const autograd::NeedsGrad& needs) {
        const Tensor left = a.get(), right = b.get();
        autograd::Gradients grads(2);
        // dA = dC B^T, dB = A^T dC, summed over broadcast dimensions
        if (needs[0]) {
          grads[0] = sum_to_shape(product(grad_output, right.transpose(-2, -1), a_dtype), left.shape());
        }
        if (needs[1]) {
          grads[1] = sum_to_shape(product(left.transpose(-2, -1), grad_output, b_dtype), right.shape());
        }
        return grads;
      });
}

}  // namespace

void set_allow_tf32(bool allow) { tf32_allowed = allow; }
bool allow_tf32() { return tf32_allowed; }

Tensor matmul(const Tensor& a, const Tensor& b) {
  OpScope scope("matmul", a, b);
  ERGON_CHECK(a.dim() >= 1 && b.dim() >= 1, "[matmul] a {} and b {}: expected at least one dimension each",
              a.shape(), b.shape());
  const int inner_b = b.dim() == 1 ? 0 : b.dim() - 2;
  ERGON_CHECK(a.size(-1) == b.shape()[inner_b],
              "[matmul] a {} and b {}: a.shape[-1] = {} must equal b.shape[{}] = {}", a.shape(), b.shape(),
              a.size(-1), inner_b - b.dim(), b.shape()[inner_b]);
  ERGON_CHECK(is_floating_point(promote(a.dtype(), b.dtype())),
              "[matmul] a is {}, b {}: expected floating point", name_of(a.dtype()), name_of(b.dtype()));
  if (a.dim() == 1) return matmul(a.unsqueeze(0), b).squeeze(b.dim() == 1 ? 0 : -2);
  if (b.dim() == 1) return matmul(a, b.unsqueeze(1)).squeeze(-1);
  if (b.dim() == 2 && a.dim() > 2) {  // one tall matrix instead of many
    Shape shape = a.shape();
    shape.back() = b.size(1);
    return matrix_product(a.reshape({-1, a.size(-1)}), b).view(shape);
  }
  return matrix_product(a, b);
}

}  // namespace ergon::ops
