#pragma once
// What one launch did; docs/simgpu.md says how each figure is counted.
#include <string>
#include <vector>

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

// What instructions did with memory and matrices.
struct Work {
  u64 mma_count = 0, mma_flops = 0;
  u64 global_load_requests = 0, global_load_bytes = 0, global_load_sectors = 0;  // 32-byte sectors
  u64 global_store_requests = 0, global_store_bytes = 0, global_store_sectors = 0;
  // Wavefronts that the addresses take, and the fewest that so many bytes could: the difference is bank
  // conflicts.
  u64 shared_requests = 0, shared_wavefronts = 0, shared_ideal_wavefronts = 0;
  u64 atomics = 0;

  Work& operator+=(const Work& other);
  u64 bank_conflicts() const { return shared_wavefronts - shared_ideal_wavefronts; }
};

struct Instructions {
  u64 by_class[static_cast<int>(InstructionClass::kCount)] = {};  // executed by a warp each

  Instructions& operator+=(const Instructions& other);
  u64 operator[](InstructionClass c) const { return by_class[static_cast<int>(c)]; }
  u64 total() const;
};

struct Counters : Work {
  u64 blocks = 0, warps = 0;
  Instructions warp_instructions;
  u64 lane_instructions = 0;
  u64 branches = 0, divergent_branches = 0;
  u64 barriers = 0;

  Counters& operator+=(const Counters& other);
};

// A part of a kernel's code: a source line, or a loop, from the target of a branch backwards to the branch.
struct Region {
  std::string place;   // "gemm.cu:40", of a loop that of its branch
  u64 iterations = 0;  // of a loop: how often warps came to its end
  Instructions warp_instructions;
  Work work;
};

struct LaunchCounters {
  Counters all;
  std::vector<Region> loops;  // in the order of the text: an inner loop before the one around it
  std::vector<Region> lines;  // by place; with settings().count_lines
};

}  // namespace simgpu
