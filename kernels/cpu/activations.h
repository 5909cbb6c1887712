#pragma once

// Activation functions and their derivatives, straight-line so that loops over them vectorise. For T = float
// the errors are those of vec_math.h plus a few roundings: below 4 ulp of max(|f(x)|, |x| 2^-24) for gelu and
// silu.

#include "kernels/cpu/vec_math.h"

namespace ergon::kernels::cpu {

template <class T>
inline T relu(T x) {
  return x < T(0) ? T(0) : x;  // NaN passes
}

template <class T>
inline T silu(T x) {
  return x * vsigmoid(x);
}
template <class T>
inline T silu_grad(T x) {
  const T s = vsigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

// x Phi(x), Phi the standard normal distribution function.
template <class T>
inline T gelu_erf(T x) {
  return T(0.5) * x * (T(1) + verf(x * T(0.70710678118654752)));
}
template <class T>
inline T gelu_erf_grad(T x) {
  const T cdf = T(0.5) * (T(1) + verf(x * T(0.70710678118654752)));
  return cdf + x * T(0.39894228040143268) * vexp(T(-0.5) * x * x);
}

// The approximation by tanh, as GPT-2 uses it: 0.5 x (1 + tanh(u)) = x sigmoid(2u),
// u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class T>
inline T gelu_tanh(T x) {
  return x * vsigmoid(T(1.5957691216057308) * (x + T(0.044715) * x * x * x));
}
template <class T>
inline T gelu_tanh_grad(T x) {
  const T s = vsigmoid(T(1.5957691216057308) * (x + T(0.044715) * x * x * x));
  return s + x * s * (T(1) - s) * (T(1.5957691216057308) * (T(1) + T(0.134145) * x * x));
}

}  // namespace ergon::kernels::cpu
