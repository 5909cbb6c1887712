#pragma once

// y[i] = op(x[i], ...) over tensors of one shape and any strides.

#include "core/dims.h"
#include "core/dtype.h"

namespace ergon::kernels {

// One tensor of a loop. Strides are in elements, one for each dimension of the loop's shape; 0 broadcasts.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::f32;
  Strides strides;
  // A number in place of a tensor: data is one f64 or i64 in the host's memory, for any device, that is read
  // before the call returns. All strides are 0.
  bool is_number = false;
};

// y = op(x)
enum class UnaryOp {
  neg,
  abs,
  square,
  // floating point only
  exp,
  log,
  sqrt,
  rsqrt,
  sin,
  cos,
  tanh,
  sigmoid,
  relu,  // NaN passes
  gelu_erf,
  gelu_tanh,
  silu,
};

// y = op(a, b). For the gradients a is the gradient of the result.
enum class BinaryOp {
  add,
  sub,
  mul,
  maximum,  // NaN if either is
  minimum,
  eq,  // comparisons give 1 or 0
  ne,
  lt,
  le,
  gt,
  ge,
  // floating point only
  div,
  pow,             // a^b
  abs_grad,        // b: the argument of the forward; abs'(0) = 0
  square_grad,     // argument
  sqrt_grad,       // result
  rsqrt_grad,      // result
  sin_grad,        // argument
  cos_grad,        // argument
  tanh_grad,       // result
  sigmoid_grad,    // result
  relu_grad,       // result (or argument); relu'(0) = 0
  gelu_erf_grad,   // argument
  gelu_tanh_grad,  // argument
  silu_grad,       // argument
};

// y = op(a, b, c)
enum class TernaryOp {
  where,  // a != 0 ? b : c
  // floating point only; a: the gradient of the result
  div_grad,      // of the denominator: -a * b / c, b the quotient, c the denominator
  pow_grad,      // of the base: a * c * b^(c - 1)
  maximum_grad,  // of the argument b against the argument c: a, half of it in a tie, 0 where b < c
  minimum_grad,
};

namespace cpu {

// compute: f32, f64 or i64 — the type that every operand is converted to and the operation is carried out in;
// f32 for bf16 and f16. Results are rounded once to y's dtype; to bool: whether they differ from 0.
// y must not be broadcast; it may be one of the inputs (same data, dtype and strides) but must not overlap
// them in another way. No alignment is required. Deterministic; threaded beyond 16384 elements.
// Bytes: numel * (sizes of all operands' elements), less for broadcast ones.
//
// Errors: vec_math.h's for the transcendental functions in f32, half_math.h's for exp, sigmoid, gelu, silu
// and the gradients of these where all operands are bf16 or all are f16, correctly rounded for the others but
// rsqrt (1.5 ulp), pow (1 ulp) and the gradients (a few roundings of their factors).
void unary(UnaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& x);
void binary(BinaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
            const Operand& b);
void ternary(TernaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
             const Operand& b, const Operand& c);

}  // namespace cpu

namespace cuda {

// The same on the current stream, for fewer than 2^31 vectors. Vectors are of 16 bytes of the widest operand
// where all are f32, bf16, f16 or bool, start at multiples of their vectors along every dimension but the
// innermost, where they are dense or broadcast, and compute is f32; else they are single elements.
// Bytes: as above, but an operand that is broadcast along the innermost dimension is read once a vector.
//
// Errors: the CUDA C++ Programming Guide's for the transcendental functions: in f32 2 ulp, log 1, pow 4;
// sigmoid 3, for its exp and two roundings. The others' as above.
void unary(UnaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& x);
void binary(BinaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
            const Operand& b);
void ternary(TernaryOp op, DType compute, const Shape& shape, const Operand& y, const Operand& a,
             const Operand& b, const Operand& c);

}  // namespace cuda
}  // namespace ergon::kernels
