#pragma once

// Elements whose dtype is known only at run time, as the type that is computed in. The choice is the same for
// a whole launch, so that it costs a branch and no divergence.

#include "core/cuda/vector.cuh"

namespace ergon::device {

namespace any_dtype_detail {

// Calls f(TypeTag<T>{}) for dtypes that vectors of kWidth elements exist for: any for single elements, else
// those of is_vector_dtype() that fit in 16 bytes.
template <int kWidth, class F>
__device__ __forceinline__ void with_type(DType dtype, F f) {
  if constexpr (kWidth <= 4) {
    if (dtype == DType::f32) return f(TypeTag<float>{});
  }
  if (dtype == DType::bf16) return f(TypeTag<bf16>{});
  if (dtype == DType::f16) return f(TypeTag<f16>{});
  if (dtype == DType::boolean) return f(TypeTag<bool>{});
  if constexpr (kWidth == 1) {
    if (dtype == DType::f64) return f(TypeTag<double>{});
    if (dtype == DType::i64) return f(TypeTag<std::int64_t>{});
    if (dtype == DType::i32) return f(TypeTag<std::int32_t>{});
    if (dtype == DType::i8) return f(TypeTag<std::int8_t>{});
    if (dtype == DType::u8) return f(TypeTag<std::uint8_t>{});
  }
}

}  // namespace any_dtype_detail

inline bool is_vector_dtype(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::boolean;
}

// kWidth elements of `data` from `offset` on, a multiple of kWidth where that is above 1.
template <class C, int kWidth>
__device__ __forceinline__ Vector<C, kWidth> load_as(const void* data, DType dtype, std::int64_t offset) {
  Vector<C, kWidth> result;
  any_dtype_detail::with_type<kWidth>(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    result = convert_vector<C>(load<kWidth>(static_cast<const T*>(data) + offset));
  });
  return result;
}

template <class C, int kWidth>
__device__ __forceinline__ void store_as(void* data, DType dtype, std::int64_t offset,
                                         const Vector<C, kWidth>& values) {
  any_dtype_detail::with_type<kWidth>(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    store(static_cast<T*>(data) + offset, convert_vector<T>(values));
  });
}

}  // namespace ergon::device
