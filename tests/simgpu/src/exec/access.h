#pragma once
// Every access of a warp to memory goes through here: address resolution, checks, counters.
#include "exec/warp.h"
#include "memory.h"

namespace simgpu {

enum class AccessKind : u8 { kRead, kWrite, kAtomic };

// Where each active lane's bytes lie on the host, after all checks. `bytes` of one lane (a vector's elements
// together).
struct Access {
  u8* at[32];
  bool contiguous = false;  // all 32 lanes are active and lane l's bytes follow those of lane l - 1
  bool same = false;        // all 32 lanes access the same bytes
};
// Resolves generic addresses; throws Fault. Lanes in different windows are handled by calling once for each.
void resolve_access(Warp& warp, const Insn& insn, u32 mask, u32 bytes, AccessKind kind, Access& access);
// The address of every lane in its space: register + offset.
void lane_addresses(Warp& warp, const Insn& insn, u64* addresses);
std::string hex(u64 value);  // "0x1f"
// "shared memory at offset 36 (byte 4 of tile in sum(float*))".
std::string describe_shared(const Warp& warp, u32 offset);
// The shared side of a cp.async: checks, and what it will write is marked.
void begin_copies(Warp& warp, const Insn& insn, u32 mask, u32 bytes, const u64* offsets);
void complete_copies(Warp& warp, u32 mask, u32 keep_groups);

}  // namespace simgpu
