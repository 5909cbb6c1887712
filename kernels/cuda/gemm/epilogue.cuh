#pragma once

// From sums to C: scaling, bias, activation or its derivative, residual, rounding.

#include "core/cuda/types.cuh"
#include "core/cuda/vector.cuh"
#include "kernels/cuda/common/activations.cuh"
#include "kernels/cuda/gemm/arguments.h"

namespace ergon::kernels::cuda::gemm_detail {

using namespace device;

// f(TypeTag<T>{}) with the type of dtype: f64 for Acc = double, else f32, bf16 or f16.
template <class Acc, class F>
__device__ __forceinline__ void with_element_type(DType dtype, F&& f) {
  if constexpr (sizeof(Acc) == 8) {
    f(TypeTag<double>{});
  } else if (dtype == DType::f32) {
    f(TypeTag<float>{});
  } else if (dtype == DType::bf16) {
    f(TypeTag<bf16>{});
  } else {
    f(TypeTag<f16>{});
  }
}

template <class T>
__device__ __forceinline__ T activate(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return relu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::gelu_erf:
      return gelu_erf(x);
    case Activation::silu:
      return silu(x);
    default:
      return x;
  }
}

template <class T>
__device__ __forceinline__ T activation_derivative(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return x > T(0) ? T(1) : T(0);
    case Activation::gelu_tanh:
      return gelu_tanh_grad(x);
    case Activation::gelu_erf:
      return gelu_erf_grad(x);
    case Activation::silu:
      return silu_grad(x);
    default:
      return T(1);
  }
}

template <class Acc>
__device__ __forceinline__ Acc load_element(const void* data, DType dtype, std::int64_t index) {
  Acc value{};
  with_element_type<Acc>(dtype, [&](auto tag) {
    value = convert<Acc>(static_cast<const typename decltype(tag)::type*>(data)[index]);
  });
  return value;
}

// kWidth elements next to each other in a row of C, the first `valid` of them there; as one vector or singly.
template <class Acc, int kWidth>
struct Run {
  std::int64_t offset, stride;
  int valid;
  bool vector;

  __device__ __forceinline__ void load(const void* data, DType dtype, Acc (&values)[kWidth]) const {
    with_element_type<Acc>(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const T* from = static_cast<const T*>(data) + offset;
      if (vector) {
        const auto loaded = device::load<kWidth>(from);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) values[e] = convert<Acc>(loaded[e]);
      } else {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) values[e] = e < valid ? convert<Acc>(from[e * stride]) : Acc(0);
      }
    });
  }

  __device__ __forceinline__ void store(void* data, DType dtype, const Acc (&values)[kWidth]) const {
    with_element_type<Acc>(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      T* to = static_cast<T*>(data) + offset;
      if (vector) {
        Vector<T, kWidth> rounded;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) rounded[e] = convert<T>(values[e]);
        device::store(to, rounded);
      } else {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          if (e < valid) to[e * stride] = convert<T>(values[e]);
        }
      }
    });
  }
};

// Writes C[row, col ...] from `sums`; the first `valid` (1 to kWidth) columns are there. `matrix` is where
// the matrix of this batch entry starts in c.
template <class Acc, int kWidth>
__device__ __forceinline__ void finish(const Epilogue<Acc>& e, Acc (&sums)[kWidth], std::int64_t matrix,
                                       std::int64_t row, std::int64_t col, int valid) {
  const Run<Acc, kWidth> run{matrix + row * e.row_stride + col * e.col_stride, e.col_stride, valid,
                             kWidth > 1 && e.vectors && valid == kWidth};
  Acc other[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[i] *= e.alpha;
  if (e.beta != Acc(0)) {
    run.load(e.c, e.dtype, other);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] += e.beta * other[i];
  }
  if (e.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i < valid) sums[i] += load_element<Acc>(e.bias, e.bias_dtype, col + i);
    }
  }
  if (e.activation_backward) {
    run.load(e.pre_activation, e.dtype, other);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] *= activation_derivative(e.activation, other[i]);
  } else {
    if (e.pre_activation != nullptr) run.store(e.pre_activation, e.dtype, sums);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] = activate(e.activation, sums[i]);
  }
  if (e.residual != nullptr) {
    run.load(e.residual, e.dtype, other);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] += other[i];
  }
  run.store(e.c, e.dtype, sums);
}

}  // namespace ergon::kernels::cuda::gemm_detail
