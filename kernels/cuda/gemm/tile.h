#pragma once

// The tiles of C that a block computes, and how it divides them.

#include <cstdint>

namespace ergon::kernels::cuda::gemm_detail {

struct Tile {
  const char* name;
  int rows, cols;  // of C
  int step_bytes;  // a K-step: 64 bytes are 32 elements of bf16 and f16, 16 of f32
  int warp_rows, warp_cols;
  int stages;  // K-steps in shared memory at a time
  int blocks;  // that a multiprocessor of sm_80 is to hold: what limits registers

  constexpr int threads() const { return rows / warp_rows * (cols / warp_cols) * 32; }
  constexpr int shared_bytes() const { return (rows + cols) * step_bytes * stages; }
  constexpr int step(int element_size) const { return step_bytes / element_size; }
};

// A warp's 64x64 part is the largest whose sums (128 registers) leave room for two sets of fragments (64):
// each fragment that is loaded takes part in as many mma as possible. All fit sm_89's 99 KiB of shared memory
// a block; 128x128 lets two blocks share a multiprocessor of sm_80, so that one multiplies while the other
// writes. The small ones are for products that would leave multiprocessors idle: smaller warp tiles, more
// loads to an mma, longer K-steps, because a barrier costs them relatively more.
inline constexpr Tile kTiles[] = {
    {"256x128", 256, 128, 64, 64, 64, 4, 1},  // 96 KiB, 8 warps
    {"128x256", 128, 256, 64, 64, 64, 4, 1},  // 96 KiB, 8 warps
    {"128x128", 128, 128, 64, 64, 64, 4, 2},  // 64 KiB, 4 warps
    {"128x64", 128, 64, 64, 64, 32, 4, 3},    // 48 KiB, 4 warps
    {"64x64", 64, 64, 128, 32, 32, 3, 3},     // 48 KiB, 4 warps
};
inline constexpr int kTileCount = static_cast<int>(sizeof(kTiles) / sizeof(kTiles[0]));

}  // namespace ergon::kernels::cuda::gemm_detail
