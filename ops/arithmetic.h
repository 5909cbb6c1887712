#pragma once

// Elementwise arithmetic with NumPy's broadcasting.
//
// Tensors of different dtypes combine to promote(a, b), in which the result is computed (bf16 and f16 in
// fp32, rounded once). A number takes the tensor's dtype, except that a floating-point number turns an
// integer tensor into f32, and a whole one a bool tensor into i64. Gradients are summed over broadcast
// dimensions and have the input's dtype. Shapes that do not broadcast, or tensors on different devices, throw
// Error.

#include "core/tensor.h"
#include "ops/scalar.h"

namespace ergon::ops {

Tensor add(const Tensor& a, const Tensor& b);
Tensor add(const Tensor& a, Scalar b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, Scalar b);
Tensor sub(Scalar a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, Scalar b);
// a / b; integers are divided as f32.
Tensor div(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, Scalar b);
Tensor div(Scalar a, const Tensor& b);
// x^exponent; integers as f32. NaN for negative x unless the exponent is whole. Exponents 2, 1, 0.5, -0.5 and
// -1 take the fast way.
Tensor pow(const Tensor& x, double exponent);
Tensor neg(const Tensor& x);

// The larger or smaller element; NaN if either is. In a tie each gets half of the gradient.
Tensor maximum(const Tensor& a, const Tensor& b);
Tensor maximum(const Tensor& a, Scalar b);
Tensor minimum(const Tensor& a, const Tensor& b);
Tensor minimum(const Tensor& a, Scalar b);

// In place: `self` keeps its shape, which `other` must broadcast to, and its dtype. An integer `self` takes
// no floating-point `other`. Differentiable where autograd::check_inplace allows it. Returns self.
Tensor& add_(Tensor& self, const Tensor& other);
Tensor& add_(Tensor& self, Scalar other);
Tensor& sub_(Tensor& self, const Tensor& other);
Tensor& sub_(Tensor& self, Scalar other);
Tensor& mul_(Tensor& self, const Tensor& other);
Tensor& mul_(Tensor& self, Scalar other);

}  // namespace ergon::ops

namespace ergon {

inline Tensor operator+(const Tensor& a, const Tensor& b) { return ops::add(a, b); }
inline Tensor operator+(const Tensor& a, Scalar b) { return ops::add(a, b); }
inline Tensor operator+(Scalar a, const Tensor& b) { return ops::add(b, a); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return ops::sub(a, b); }
inline Tensor operator-(const Tensor& a, Scalar b) { return ops::sub(a, b); }
inline Tensor operator-(Scalar a, const Tensor& b) { return ops::sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return ops::mul(a, b); }
inline Tensor operator*(const Tensor& a, Scalar b) { return ops::mul(a, b); }
inline Tensor operator*(Scalar a, const Tensor& b) { return ops::mul(b, a); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return ops::div(a, b); }
inline Tensor operator/(const Tensor& a, Scalar b) { return ops::div(a, b); }
inline Tensor operator/(Scalar a, const Tensor& b) { return ops::div(a, b); }
inline Tensor operator-(const Tensor& x) { return ops::neg(x); }
inline Tensor& operator+=(Tensor& a, const Tensor& b) { return ops::add_(a, b); }
inline Tensor& operator+=(Tensor& a, Scalar b) { return ops::add_(a, b); }
inline Tensor& operator-=(Tensor& a, const Tensor& b) { return ops::sub_(a, b); }
inline Tensor& operator-=(Tensor& a, Scalar b) { return ops::sub_(a, b); }
inline Tensor& operator*=(Tensor& a, const Tensor& b) { return ops::mul_(a, b); }
inline Tensor& operator*=(Tensor& a, Scalar b) { return ops::mul_(a, b); }

}  // namespace ergon
