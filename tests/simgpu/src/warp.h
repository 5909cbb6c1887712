#pragma once
// Execution state of one block and its warps, and the accessors that instruction handlers use.
#include <bit>
#include <cstring>
#include <deque>
#include <vector>

#include "program.h"

namespace simgpu {

constexpr u32 kFullMask = 0xffffffffu;
constexpr u64 kSharedWindow = u64{1} << 60;  // generic address of shared byte 0

// Who touched a shared byte since the last barrier: what the race detector compares.
struct SharedCell {
  u32 write_epoch = 0, read_epoch = 0;
  u32 write_sync = 0, read_sync = 0;
  u16 writer = 0, reader = 0;
};

struct AsyncCopy {
  u32 group = 0, lane = 0, shared = 0;
  u8 bytes = 0;
  u8 data[16];
};

enum class SplitState : u8 { kRunning, kAtBlockBarrier, kParked };
struct Split {
  int pc = 0;
  u32 mask = 0;
  SplitState state = SplitState::kRunning;
  u32 barrier = 0, expected = 0;
};

struct Block {
  const Kernel* kernel = nullptr;
  const u8* params = nullptr;
  Dim grid, dim, index;
  std::vector<u8> shared, shared_state;
  std::vector<SharedCell> cells;
  u32 epoch = 1;
};

struct Warp {
  Block* block = nullptr;
  u8* file = nullptr;
  u32 index = 0, exited = 0, sync = 1;
  std::vector<Split> splits;
  u32 group[32] = {};  // cp.async groups committed by each lane
  std::vector<AsyncCopy> copies;
};

template <class T>
inline T* lanes(Warp& w, Operand o) {
  return reinterpret_cast<T*>(w.file + o.offset);
}
inline u32& predicate(Warp& w, Operand o) { return *reinterpret_cast<u32*>(w.file + o.offset); }

inline u64 read_any(Warp& w, Operand o, int lane) {
  switch (o.width) {
    case 1: return lanes<u8>(w, o)[lane];
    case 2: return lanes<u16>(w, o)[lane];
    case 4: return lanes<u32>(w, o)[lane];
    default: return lanes<u64>(w, o)[lane];
  }
}
inline void write_any(Warp& w, Operand o, int lane, u64 value) {
  switch (o.width) {
    case 1: lanes<u8>(w, o)[lane] = static_cast<u8>(value); break;
    case 2: lanes<u16>(w, o)[lane] = static_cast<u16>(value); break;
    case 4: lanes<u32>(w, o)[lane] = static_cast<u32>(value); break;
    default: lanes<u64>(w, o)[lane] = value;
  }
}

// Throws PtxError: message, kernel, .cu line, block and thread.
[[noreturn]] void report(const Warp& w, const Insn& insn, int lane, const std::string& message);

bool select_arithmetic(Insn& insn, const Opcode& opcode, size_t num_operands);
bool select_memory(Insn& insn, const Opcode& opcode, size_t num_operands);
bool select_warp(Insn& insn, const Opcode& opcode, size_t num_operands);

}  // namespace simgpu
