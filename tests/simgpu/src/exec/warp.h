#pragma once
// Execution state of a block and its warps, and the lane loops that handlers are made of.
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <vector>

#include "ptx/decoder.h"

namespace simgpu {

// Registers of one call of a function by the lanes that entered it together.
struct Frame {
  std::vector<std::byte> storage;
  std::byte* data = nullptr;
  const Function* function = nullptr;
  Frame* caller = nullptr;
  i32 return_pc = 0;
  u32 lanes = 0;         // that have not returned
  u32 call = 0;          // the caller's Call
  u32 local_base = 0;    // of this frame's .local variables in a thread's stack
  u64 block_serial = 0;  // of the block whose special registers it holds
  i32 depth = 0;
};

struct Block;

// Lanes of a warp that are at the same place.
struct Split {
  i32 pc = 0;
  u32 mask = 0;
  Frame* frame = nullptr;
  enum class State : u8 { kRunning, kBlockBarrier, kWarpWait } state = State::kRunning;
  u32 barrier = 0;   // id
  u32 expected = 0;  // threads; 0: the whole block
  u64 ran = 0;       // BlockRunner's clock when it last ran
};

// One cp.async of some lanes that are in the same group.
struct AsyncCopy {
  u32 mask = 0, group = 0, bytes = 0;
  u32 shared[32];
  u8 data[32][16];
};

struct Warp {
  std::byte* file = nullptr;  // the current split's registers
  Frame* frame = nullptr;
  Block* block = nullptr;
  u32 index = 0;  // in the block
  u32 exited = 0;
  u32 sync = 1;  // the Block::interval that its last convergence point began
  std::vector<Split> splits;
  u32 backward = 0;                                              // branches taken since a split gave way
  bool spun = false;                                             // the last split to run gave way in a loop
  bool waits = false;                                            // and was found to do nothing in it but wait
  u32 committed[32] = {};                                        // cp.async groups of each lane
  std::vector<std::unique_ptr<AsyncCopy>> copies, spare_copies;  // not waited for, oldest first
  std::vector<std::byte> local;                                  // stacks, one after another

  template <class T>
  T* lanes(u32 offset) {
    return reinterpret_cast<T*>(file + offset);
  }
  u32& predicate(u32 offset) { return *reinterpret_cast<u32*>(file + offset); }
};

struct Launch;

struct Block {
  Launch* launch = nullptr;
  Dim3 index;
  u64 linear = 0;
  u64 serial = 0;
  u32 interval = 0;     // convergence points and barriers so far
  u32 epoch = 0;        // the interval that the block's last barrier began
  u32 last_update = 0;  // the interval of the last atomic on shared memory
  std::vector<std::byte> shared;
  std::vector<u8> shared_state;             // Shadow of each byte, or kPending
  std::vector<u32> written, read, updated;  // what the race detector knows of shared memory: exec/races.cpp
};
// The next interval; 0 when the stamps have no room for more (forget_shared_accesses).
u32 next_interval(Block& block);
void forget_shared_accesses(Block& block);
// Behind the kernel's own shared memory: the system's, of which cooperative groups use a part.
constexpr u32 kReservedShared = 1024;
constexpr u32 kSharedGuard = 4096;  // between the two, for no one
constexpr u8 kPending = 4;          // a cp.async that has not been waited for writes here

// What one host thread has counted of a launch.
struct LaunchCounts {
  std::vector<u64> executed;  // by instruction of the program
  std::vector<Work> work;     // likewise
  Counters counters;          // what belongs to no single instruction
};

struct Launch {
  const Program* program = nullptr;
  const std::string* name = nullptr;
  LaunchConfig config;
  std::span<const u8> params;
  u32 id = 0;
  std::atomic<bool> synchronised = false;  // a device-wide fence, release or acquire has run
};

extern thread_local LaunchCounts* counts;  // of the host thread's current launch

// Throws Fault: the message with kernel, .cu line, block and thread.
[[noreturn]] void report(const Warp& warp, const Insn& insn, int lane, FaultKind kind,
                         const std::string& message);

template <class F>
inline void for_lanes(u32 mask, F&& f) {
  for (; mask != 0; mask &= mask - 1) f(std::countr_zero(mask));
}

// d[l] = f(l) for the lanes of the mask: plain loops over 32 lanes, which the compiler vectorises.
template <class T, class F>
inline void map(T* d, u32 mask, F&& f) {
  if (mask == kFullMask) {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) d[l] = f(l);
  } else {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) {
      const T value = f(l);
      d[l] = (mask >> l & 1) != 0 ? value : d[l];
    }
  }
}

template <class Op, class T>
void unary(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) { return Op::apply(a[l]); });
}
template <class Op, class T>
void binary(Warp& w, const Insn& i, u32 mask) {
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) { return Op::apply(a[l], b[l]); });
}
template <class Op, class T>
void ternary(Warp& w, const Insn& i, u32 mask) {
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]), *c = w.lanes<T>(i.op[3]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) { return Op::apply(a[l], b[l], c[l]); });
}

// Resolves destination and sources, all of one width.
inline void resolve(Decoder& d, Insn& insn, const std::vector<Argument>& args, u32 width, size_t sources) {
  if (args.size() != sources + 1) throw PtxError("expected " + std::to_string(sources + 1) + " operands");
  insn.op[0] = d.result(args[0], width);
  for (size_t s = 0; s < sources; ++s) insn.op[s + 1] = d.value(args[s + 1], width);
  insn.bytes = static_cast<u8>(width);
}

}  // namespace simgpu
