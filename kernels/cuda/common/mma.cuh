#pragma once

// The instructions of sm_80 that tensor-core kernels are made of, one function each. Shared memory is named
// by 32-bit addresses (shared_address).

#include <cstdint>
#include <utility>

#include "core/cuda/types.cuh"

namespace ergon::device {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// f(integral_constant 0) ... f(integral_constant kCount - 1): a loop whose counter can be part of an
// instruction.
template <int kCount, class F>
__device__ __forceinline__ void unrolled(F&& f) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (f(std::integral_constant<int, kIndex>{}), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

// x, of which the compiler then knows nothing: it computes what follows from it anew, rather than keep it in
// registers since the last time.
__device__ __forceinline__ int computed_anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- cp.async: global to shared memory, past the registers. Both addresses aligned to kBytes. ----

// 16 bytes go past L1; 8 and 4 have only the form that fills it. The offsets are constants in bytes.
template <int kBytes, int kOffset = 0, int kGlobalOffset = 0>
__device__ __forceinline__ void copy_async(std::uint32_t shared, const void* global) {
  static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0+%2], [%1+%3], 16;" ::"r"(shared), "l"(global), "n"(kOffset),
                 "n"(kGlobalOffset)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0+%3], [%1+%4], %2;" ::"r"(shared), "l"(global), "n"(kBytes),
                 "n"(kOffset), "n"(kGlobalOffset)
                 : "memory");
  }
}

// Copies the first `bytes` (0 to kBytes) and zeroes the rest; reads nothing beyond them.
template <int kBytes, int kOffset = 0>
__device__ __forceinline__ void copy_async(std::uint32_t shared, const void* global, int bytes) {
  static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0+%3], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes),
                 "n"(kOffset)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0+%4], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(kBytes),
                 "r"(bytes), "n"(kOffset)
                 : "memory");
  }
}

// Closes the group of this thread's copies since the last call; an empty group is done at once.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups, the youngest, are under way. What they wrote is there
// for this thread; a barrier makes it so for others.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void store_shared(std::uint32_t shared, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

__device__ __forceinline__ void store_shared(std::uint32_t shared, float x0, float x1) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(x0), "f"(x1) : "memory");
}

__device__ __forceinline__ void store_shared(std::uint32_t shared, float x0, float x1, float x2, float x3) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "f"(x0), "f"(x1), "f"(x2), "f"(x3)
               : "memory");
}

template <int kOffset = 0>
__device__ __forceinline__ void load_shared(std::uint32_t& r0, std::uint32_t& r1, std::uint32_t shared) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2+%3];"
               : "=r"(r0), "=r"(r1)
               : "r"(shared), "n"(kOffset)
               : "memory");
}

template <int kOffset = 0>
__device__ __forceinline__ void load_shared(std::uint32_t& r0, std::uint32_t& r1, std::uint32_t& r2,
                                            std::uint32_t& r3, std::uint32_t shared) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
               : "r"(shared), "n"(kOffset)
               : "memory");
}

// ---- ldmatrix: four matrices of 8 rows of 16 bytes; lane 8 m + r gives the address of row r of matrix m.
// Afterwards r[m] of lane l is word l % 4 of row l / 4 of matrix m: two 16-bit elements, or one of 32 bits.
// ----
template <int kOffset = 0>
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared), "n"(kOffset)
               : "memory");
}

// The same of 8x8 matrices of 16-bit elements, transposed: rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
template <int kOffset = 0>
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared), "n"(kOffset)
               : "memory");
}

// ---- mma: d (16, 8) += a (16, k) b (k, 8), in fp32. With group g = lane / 4 and t = lane % 4:
//   d    [0], [1]: row g, columns 2t, 2t + 1;  [2], [3]: row g + 8
//   16-bit elements, k = 16, two to a register:
//   a    [0]: row g, k 2t, 2t + 1;  [1]: row g + 8;  [2], [3]: the same at k + 8
//   b0   k 2t, 2t + 1, column g;    b1: the same at k + 8
//   tf32, k = 8, one to a register, its low 13 bits ignored:
//   a    [0]: row g, k t;           [1]: row g + 8;  [2], [3]: the same at k + 4
//   b0   k t, column g;             b1: the same at k + 4
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8".) ----
__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                        std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace ergon::device
