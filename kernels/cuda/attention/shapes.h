#pragma once

// The tiles of the tensor-core kernels, by the padded head_dim.

#include <cstdint>

namespace ergon::kernels::cuda::attention_detail {

// Kernels with features take long to compile: there are none for 32.
constexpr int padded_dim(std::int64_t head_dim, bool featured) {
  if (head_dim <= 32 && !featured) return 32;
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

// What a block of four warps works on: fragments of 16 queries of each warp, keys of a tile, tiles of keys or
// values in shared memory at a time.
struct ForwardShape {
  int fragments, keys, stages;

  constexpr int rows() const { return 4 * 16 * fragments; }
  constexpr int shared_bytes(int dim) const { return 2 * dim * (rows() + stages * keys); }
};
constexpr ForwardShape forward_shape(int dim, bool featured) {
  // Two fragments use each fragment of keys and values twice: one would leave mma waiting for shared memory.
  if (dim <= 64) return {2, 64, 4};
  // Results take 128 registers, scores of 64 keys 64 more, which leaves too few for the features. Three
  // stages: two blocks fit on a multiprocessor of 164 KiB.
  if (dim <= 128) return {2, featured ? 32 : 48, 4};
  // Two fragments' results would take all 256 registers.
  return {1, 32, 4};
}

// `halves` warps share their 16 keys, each with its part of the columns of dk and dv; a tile of queries at a
// time. Keys, values and two stages of q and dout fit into the 99 KiB of sm_89.
struct BackwardShape {
  int warps, halves, queries;

  constexpr int threads() const { return 32 * warps; }
  constexpr int keys() const { return warps / halves * 16; }
  constexpr int shared_bytes(int dim) const { return 2 * dim * (2 * keys() + 4 * queries) + 2 * queries * 8; }
};
constexpr BackwardShape backward_shape(int dim) {
  // Gradients of the scores, keys * queries, take the place of q and dout, 2 * queries * dim.
  if (dim <= 32) return {4, 1, 64};
  if (dim <= 64) return {8, 1, 64};
  // dk and dv of a warp take 128 registers.
  if (dim <= 128) return {8, 1, 32};
  // 16 keys' dk and dv would take 256 registers: two warps share them, and both compute the scores.
  return {8, 2, 16};
}

}  // namespace ergon::kernels::cuda::attention_detail
