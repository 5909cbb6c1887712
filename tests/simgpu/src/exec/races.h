#pragma once
// Data races: two accesses to the same bytes by different threads, one of them a plain write, and nothing
// between them that orders the two. Bytes are told apart down to the kernel's narrowest access.
#include "exec/access.h"

namespace simgpu {

enum class Pattern : u8 { kOther, kContiguous, kSame };  // of the addresses of 32 lanes

constexpr u32 kUnusedCells = 32 * 16;  // at the end of a block's cells

// Shared memory. Ordered: a barrier of the block in between; for lanes of one warp also a convergence point
// (bar.warp.sync, shfl, vote, ...). Atomics do not race with atomics.
void check_shared_races(Warp& warp, const Insn& insn, u32 mask, u32 bytes, AccessKind kind,
                        const u64* offsets, Pattern pattern);
void mark_written(Warp& warp, int lane, u32 offset, u32 bytes);

// Global memory, between blocks of one launch. From the first device-wide fence, release or acquire of the
// launch on, blocks may order themselves and nothing is reported: this may hide a race, and never reports a
// false one.
void check_global_races(Warp& warp, const Insn& insn, u32 mask, u32 bytes, AccessKind kind,
                        const u64* addresses, bool contiguous);
void begin_global_races(u32 launch);  // before the first block of the launch

}  // namespace simgpu
