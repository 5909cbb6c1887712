#pragma once

// Activation functions and their derivatives in float and double. Errors in float: a few ulp of
// max(|f(x)|, |x| 2^-24); exp, tanh and erf are the accurate ones, not the intrinsics.

namespace ergon::device {

template <class T>
__device__ __forceinline__ T relu(T x) {
  return x < T(0) ? T(0) : x;  // NaN passes
}

template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

template <class T>
__device__ __forceinline__ T silu(T x) {
  return x * sigmoid(x);
}
template <class T>
__device__ __forceinline__ T silu_grad(T x) {
  const T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

// x Phi(x), Phi the standard normal distribution function.
template <class T>
__device__ __forceinline__ T gelu_erf(T x) {
  return T(0.5) * x * (T(1) + erf(x * T(0.70710678118654752)));
}
template <class T>
__device__ __forceinline__ T gelu_erf_grad(T x) {
  const T cdf = T(0.5) * (T(1) + erf(x * T(0.70710678118654752)));
  return cdf + x * T(0.39894228040143268) * exp(T(-0.5) * x * x);
}

// The approximation by tanh, as GPT-2 uses it: 0.5 x (1 + tanh(u)) = x sigmoid(2u),
// u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class T>
__device__ __forceinline__ T gelu_tanh(T x) {
  return x * sigmoid(T(1.5957691216057308) * (x + T(0.044715) * x * x * x));
}
template <class T>
__device__ __forceinline__ T gelu_tanh_grad(T x) {
  const T s = sigmoid(T(1.5957691216057308) * (x + T(0.044715) * x * x * x));
  return s + x * s * (T(1) - s) * (T(1.5957691216057308) * (T(1) + T(0.134145) * x * x));
}

}  // namespace ergon::device
