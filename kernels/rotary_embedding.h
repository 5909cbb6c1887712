#pragma once

// Rotation of pairs of elements by angles that grow with the position.

#include <cstdint>

#include "core/dtype.h"

namespace ergon::kernels {

// With c, s = table[position(b, t)] and half = head_dim / 2, for i < half:
//   y[i]        = x[i] * c[i] - x[i + half] * s[i]
//   y[i + half] = x[i + half] * c[i] + x[i] * s[i]
// interleaved: the pairs are (2 i, 2 i + 1) instead of (i, i + half). inverse: s is negated; that is the
// backward.
//
// x          (batch, seqlen, num_heads, head_dim)  f32 | bf16 | f16 | f64; strides in elements, that of
// head_dim is 1 y          the same, contiguous; must not overlap x table      (positions, 2, half)
// contiguous cosines and sines, f32, or f64 with f64 x positions  element (b, t) at b * position_stride + t,
// i64; null: offset + t
//
// Deterministic. No alignment is required. No scratch. Bytes: numel * (x + y). Flops: 3 * numel.
struct RotaryParams {
  std::int64_t batch = 0;
  std::int64_t seqlen = 0;
  std::int64_t num_heads = 0;
  std::int64_t head_dim = 0;
  DType dtype = DType::f32;
  const void* x = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t seqlen_stride = 0;
  std::int64_t head_stride = 0;
  void* y = nullptr;
  const void* table = nullptr;
  const std::int64_t* positions = nullptr;
  std::int64_t position_stride = 0;
  std::int64_t position_limit = 0;
  std::int64_t offset = 0;
  bool interleaved = false;
  bool inverse = false;
};

namespace cpu {

void rotary_embedding(const RotaryParams& params);

}  // namespace cpu

// A position of `positions` that is not in [0, position_limit) becomes an index fault
// (core/cuda/index_fault.h); position_limit is at most the table's size. Vectors of up to 16 bytes where
// head_dim / 2, strides and pointers allow them. A thread turns the pairs of all heads, so that the table is
// read once for each position: Bytes: numel * (x + y) + batch * seqlen * head_dim of the table.
namespace cuda {

void rotary_embedding(const RotaryParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
