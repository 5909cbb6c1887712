#pragma once
// What one launch did; docs/simgpu.md says how each figure is counted.
#include "types.h"

namespace simgpu {

enum class InstructionClass : u8 {
  kInteger,
  kFloat,
  kHalf,
  kDouble,
  kConversion,
  kSpecial,
  kMove,
  kPredicate,
  kControl,
  kGlobalLoad,
  kGlobalStore,
  kSharedLoad,
  kSharedStore,
  kLocal,
  kParameter,
  kAsyncCopy,
  kMatrixLoad,
  kMatrixMultiply,
  kAtomic,
  kWarpCollective,
  kBarrier,
  kCount
};

struct Counters {
  u64 blocks = 0, warps = 0;
  u64 warp_instructions[static_cast<int>(InstructionClass::kCount)] = {};
  u64 lane_instructions = 0;
  u64 mma_count = 0, mma_flops = 0;
  u64 global_load_requests = 0, global_load_bytes = 0, global_load_sectors = 0;  // 32-byte sectors
  u64 global_store_requests = 0, global_store_bytes = 0, global_store_sectors = 0;
  // Wavefronts that the addresses take, and the fewest that so many bytes could: the difference is bank
  // conflicts.
  u64 shared_requests = 0, shared_wavefronts = 0, shared_ideal_wavefronts = 0;
  u64 atomics = 0;
  u64 branches = 0, divergent_branches = 0;
  u64 barriers = 0;

  Counters& operator+=(const Counters& other);
};

}  // namespace simgpu
