#pragma once
#include <memory>
#include <vector>

#include "exec/warp.h"

namespace simgpu {

// Runs one block at a time, in turns. Kept for the next block, and the next launch that it fits.
class BlockRunner {
 public:
  explicit BlockRunner(const Launch& launch);
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;
  bool fits(const Launch& launch) const;  // same program, block and shared memory
  void start(Launch& launch, u64 linear);
  bool finished() const;
  void turn();                           // every warp goes as far as it can, or until it has spun for a while
  void report_deadlock() const;          // throws
  bool waits() const { return waits_; }  // whether the last turn's loops changed no register
  bool spins() const { return spells_ >= kSpells; }  // whether the last turns did nothing but loop

 private:
  Frame* enter(Warp& warp, const Function& function, Frame* caller, u32 lanes);
  void fill_special(Warp& warp, Frame& frame);
  static bool behind(const Split& a, const Split& b);
  i32 choose(Warp& warp);
  static bool same_call(const Frame* a, const Frame* b, u32 lanes);
  static void merge_frames(Frame* into, Frame* from, u32 lanes);
  bool run_warp(Warp& warp);
  bool run_split(Warp& warp, Split split);  // true: some instruction was executed
  void give_way(Warp& warp, bool waits);    // in a loop; `waits`: it does nothing else
  void call(Warp& warp, const Insn& insn, Split split, u32 mask);
  void give_back(Warp& warp, Split split, u32 mask);  // ret
  bool release_warp_barrier(Warp& warp);
  void release_barrier(bool stuck);
  void pass_barrier(u32 id);
  u32 new_interval();  // begins one: of the block at a barrier, of a warp at a convergence point

  Launch* launch_ = nullptr;
  const Program& program_;  // may be gone once another launch has begun
  u64 program_serial_ = 0;
  Dim3 dimensions_;
  u32 dynamic_bytes_ = 0;
  Block block_;
  u32 threads_ = 0;
  std::vector<Warp> warps_;
  std::vector<std::vector<std::unique_ptr<Frame>>> pools_;  // by warp
  u32 arrived_[16] = {};                                    // by bar.arrive
  static constexpr u32 kSpells = 128;
  u32 spells_ = 0;  // turns in which some split spun
  bool waits_ = false;
  u64 turns_ = 0, clock_ = 0;
  // A frame as it was at a backward branch, to tell whether the loop changes anything. It outlasts calls in
  // the loop.
  std::vector<std::byte> snapshot_;
  struct {
    const Frame* frame = nullptr;
    i32 pc = 0;
    u32 lanes = 0;
  } probe_;
};

LaunchCounters execute(Launch& launch);

// vprintf and __assertfail.
void run_builtin(Warp& warp, const Insn& insn, const Call& call, u32 mask);

}  // namespace simgpu
