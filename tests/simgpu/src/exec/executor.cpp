// Runs one block. A warp's lanes that have parted run as splits; the one furthest behind goes first, which
// brings structured code together again. A split that keeps branching backwards gives way to other splits,
// warps and, last, blocks, so that spin waits end.
#include "exec/executor.h"

#include <algorithm>

#include "exec/races.h"
#include "memory.h"

namespace simgpu {

void report(const Warp& w, const Insn& insn, int lane, FaultKind kind, const std::string& message) {
  const Launch& launch = *w.block->launch;
  const Dim3 dim = launch.config.block, index = w.block->index;
  const u32 thread = w.index * 32 + static_cast<u32>(lane);
  const auto triple = [](u32 x, u32 y, u32 z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  std::string text = message + "; kernel " + *launch.name;
  if (const std::string where = launch.program->trace(insn); !where.empty()) text += " at " + where;
  text += ", block " + triple(index.x, index.y, index.z) + ", thread "
          + triple(thread % dim.x, thread / dim.x % dim.y, thread / dim.x / dim.y);
  throw Fault(kind, text);
}

BlockRunner::BlockRunner(const Launch& launch)
    : program_(*launch.program),
      program_serial_(launch.program->serial),
      dimensions_(launch.config.block),
      dynamic_bytes_(launch.config.dynamic_shared_bytes) {
  const u64 bytes =
      (u64{program_.shared_bytes} + dynamic_bytes_ + 15) / 16 * 16 + kSharedGuard + kReservedShared;
  block_.shared.resize(bytes);
  block_.shared_state.resize(bytes + 16);
  const size_t cells = (bytes >> program_.shared_grain) + 16 + kUnusedCells;
  block_.written.resize(cells);
  block_.read.resize(cells);
  block_.updated.resize(cells);
  threads_ = dimensions_.x * dimensions_.y * dimensions_.z;
  warps_.resize((threads_ + 31) / 32);
  for (u32 i = 0; i < warps_.size(); ++i) {
    warps_[i].block = &block_;
    warps_[i].index = i;
    warps_[i].local.resize(size_t{32} * program_.local_bytes);
  }
  pools_.resize(warps_.size());
}

bool BlockRunner::fits(const Launch& launch) const {
  const Dim3 d = launch.config.block;
  return launch.program->serial == program_serial_ && launch.config.dynamic_shared_bytes == dynamic_bytes_
         && d.x == dimensions_.x && d.y == dimensions_.y && d.z == dimensions_.z;
}

void BlockRunner::start(Launch& launch, u64 linear) {
  static std::atomic<u64> serials{0};
  launch_ = block_.launch = &launch;
  const Dim3 g = launch.config.grid;
  block_.linear = linear;
  block_.index = {static_cast<u32>(linear % g.x), static_cast<u32>(linear / g.x % g.y),
                  static_cast<u32>(linear / g.x / g.y)};
  block_.serial = ++serials;
  new_interval();
  block_.epoch = block_.interval;
  std::fill(block_.shared_state.begin(), block_.shared_state.end(), u8{kUninitialised});
  std::fill_n(block_.shared_state.end() - 16 - kReservedShared, kReservedShared, u8{kInitialised});
  std::fill(std::begin(arrived_), std::end(arrived_), 0u);
  spells_ = 0, turns_ = 0, clock_ = 0;
  for (Warp& w : warps_) {
    const u32 left = threads_ - w.index * 32, all = left >= 32 ? kFullMask : (1u << left) - 1;
    w.exited = ~all;
    w.sync = block_.epoch;
    w.backward = 0;
    w.spun = w.waits = false;
    for (auto& copy : w.copies) w.spare_copies.push_back(std::move(copy));
    w.copies.clear();
    std::fill(std::begin(w.committed), std::end(w.committed), 0u);
    w.splits.clear();
    for (const auto& frame : pools_[w.index]) frame->lanes = 0;
    Frame* frame = enter(w, *program_.entry, nullptr, all);
    w.splits.push_back({0, all, frame});
  }
}

bool BlockRunner::finished() const {
  return std::all_of(warps_.begin(), warps_.end(), [](const Warp& w) { return w.splits.empty(); });
}

// A frame of the function, from the pool or new; its constants and special registers are in place.
Frame* BlockRunner::enter(Warp& w, const Function& function, Frame* caller, u32 lanes) {
  auto& pool = pools_[w.index];
  const auto found = std::find_if(pool.begin(), pool.end(),
                                  [&](const auto& f) { return f->lanes == 0 && f->function == &function; });
  Frame* frame;
  if (found != pool.end()) {
    frame = found->get();
  } else {
    frame = pool.emplace_back(std::make_unique<Frame>()).get();
    frame->function = &function;
    frame->storage.resize(function.frame_bytes + 64);
    const auto raw = reinterpret_cast<u64>(frame->storage.data());
    frame->data = reinterpret_cast<std::byte*>((raw + 63) / 64 * 64);
    for (const Constant& c : function.constants) {
      if (c.width == 0) std::memcpy(frame->data + c.offset, &c.value, 4);
      for (u32 l = 0; l < 32 && c.width > 0; ++l)
        std::memcpy(frame->data + c.offset + l * c.width, &c.value, c.width);
    }
  }
  if (frame->block_serial != block_.serial) fill_special(w, *frame);
  if (frame == probe_.frame) probe_.frame = nullptr;
  frame->caller = caller;
  frame->lanes = lanes;
  frame->depth = caller == nullptr ? 0 : caller->depth + 1;
  frame->local_base =
      caller == nullptr ? 0 : (caller->local_base + caller->function->local_bytes + 15) / 16 * 16;
  if (u64{frame->local_base} + function.local_bytes > program_.local_bytes) {
    throw Fault(FaultKind::kOutOfBounds, "the stack of a thread is full ("
                                             + std::to_string(program_.local_bytes) + " bytes): function "
                                             + function.name + " of kernel " + *launch_->name);
  }
  for (const Constant& c : function.locals) {
    const u64 address = frame->local_base + c.value;
    for (u32 l = 0; l < 32; ++l) std::memcpy(frame->data + c.offset + l * c.width, &address, c.width);
  }
  return frame;
}

// A frame stays with its warp: what differs between lanes is the same in every block.
void BlockRunner::fill_special(Warp& w, Frame& frame) {
  const bool fresh = frame.block_serial == 0;
  frame.block_serial = block_.serial;
  const Dim3 d = dimensions_, g = launch_->config.grid, b = block_.index;
  const auto shared = static_cast<u32>(block_.shared.size());
  const u64 workspace = launch_->config.grid_workspace;
  for (const Special& s : frame.function->specials) {
    auto* const slot = reinterpret_cast<u32*>(frame.data + s.offset);
    const auto same = [&](u32 value) { std::fill_n(slot, 32, value); };
    const auto by_lane = [&](auto&& value) {
      for (u32 l = 0; fresh && l < 32; ++l) slot[l] = value(l);
    };
    const auto by_thread = [&](auto&& value) { by_lane([&](u32 l) { return value(w.index * 32 + l); }); };
    switch (static_cast<SpecialRegister>(s.index)) {
      case SpecialRegister::kTidX:
        by_thread([&](u32 t) { return t % d.x; });
        break;
      case SpecialRegister::kTidY:
        by_thread([&](u32 t) { return t / d.x % d.y; });
        break;
      case SpecialRegister::kTidZ:
        by_thread([&](u32 t) { return t / d.x / d.y; });
        break;
      case SpecialRegister::kNtidX:
        same(d.x);
        break;
      case SpecialRegister::kNtidY:
        same(d.y);
        break;
      case SpecialRegister::kNtidZ:
        same(d.z);
        break;
      case SpecialRegister::kCtaidX:
        same(b.x);
        break;
      case SpecialRegister::kCtaidY:
        same(b.y);
        break;
      case SpecialRegister::kCtaidZ:
        same(b.z);
        break;
      case SpecialRegister::kNctaidX:
        same(g.x);
        break;
      case SpecialRegister::kNctaidY:
        same(g.y);
        break;
      case SpecialRegister::kNctaidZ:
        same(g.z);
        break;
      case SpecialRegister::kLaneId:
        by_lane([](u32 l) { return l; });
        break;
      case SpecialRegister::kWarpId:
        same(w.index);
        break;
      case SpecialRegister::kNwarpId:
        same(static_cast<u32>(warps_.size()));
        break;
      case SpecialRegister::kSmId:
        same(static_cast<u32>(block_.linear % u64{kMultiprocessors}));
        break;
      case SpecialRegister::kNsmId:
        same(kMultiprocessors);
        break;
      case SpecialRegister::kGridId:
        same(launch_->id);
        break;
      case SpecialRegister::kLanemaskEq:
        by_lane([](u32 l) { return 1u << l; });
        break;
      case SpecialRegister::kLanemaskLe:
        by_lane([](u32 l) { return ((1u << l) - 1) | 1u << l; });
        break;
      case SpecialRegister::kLanemaskLt:
        by_lane([](u32 l) { return (1u << l) - 1; });
        break;
      case SpecialRegister::kLanemaskGe:
        by_lane([](u32 l) { return ~((1u << l) - 1); });
        break;
      case SpecialRegister::kLanemaskGt:
        by_lane([](u32 l) { return ~(((1u << l) - 1) | 1u << l); });
        break;
      case SpecialRegister::kDynamicSharedBytes:
        same(dynamic_bytes_);
        break;
      case SpecialRegister::kTotalSharedBytes:
        same(shared - kReservedShared - kSharedGuard);
        break;
      case SpecialRegister::kGridWorkspaceHigh:
        same(static_cast<u32>(workspace >> 32));
        break;
      case SpecialRegister::kGridWorkspaceLow:
        same(static_cast<u32>(workspace));
        break;
      case SpecialRegister::kReservedSharedOffset:
        same(shared - kReservedShared);
        break;
    }
  }
}

// Some split that still runs stands for the block.
void BlockRunner::report_deadlock() const {
  for (const Warp& w : warps_) {
    for (const Split& s : w.splits) {
      report(w, s.frame->function->code[static_cast<size_t>(s.pc)], std::countr_zero(s.mask),
             FaultKind::kDeadlock, "no block makes progress: all that are alive spin");
    }
  }
}

void BlockRunner::turn() {
  bool progress = false, spun = false, worked = false;
  const size_t n = warps_.size(), first = launch_->config.order_seed * (block_.linear + ++turns_) % n;
  for (size_t k = 0; k < n; ++k) {
    Warp& w = warps_[(first + k) % n];
    if (!run_warp(w)) continue;
    progress = true;
    spun |= w.spun;
    worked |= !w.waits;
  }
  if (!finished()) release_barrier(!progress);
  waits_ = !worked;
  spells_ = !spun ? 0 : worked ? spells_ + 1 : kSpells;
}

// Before: in an outer function, or earlier in the text. Splits of one place have one frame or run one after
// another.
bool BlockRunner::behind(const Split& a, const Split& b) {
  const Frame *fa = a.frame, *fb = b.frame;
  i32 pa = a.pc, pb = b.pc;
  bool deeper_a = false, deeper_b = false;
  while (fa->depth > fb->depth) pa = fa->return_pc - 1, fa = fa->caller, deeper_a = true;
  while (fb->depth > fa->depth) pb = fb->return_pc - 1, fb = fb->caller, deeper_b = true;
  while (fa != fb && fa->caller != nullptr) {
    pa = fa->return_pc - 1, pb = fb->return_pc - 1;
    fa = fa->caller, fb = fb->caller;
  }
  if (pa != pb) return pa < pb;
  return deeper_a && !deeper_b;
}

// Lanes that called a function one group after another have a frame each. Where all `lanes` of b are at one
// place, their registers can move into a, and so up the callers until the frames are one.
bool BlockRunner::same_call(const Frame* a, const Frame* b, u32 lanes) {
  for (; a != b; a = a->caller, b = b->caller) {
    if (a == nullptr || b == nullptr || a->function != b->function || a->return_pc != b->return_pc
        || b->lanes != lanes || a->local_base != b->local_base)
      return false;
  }
  return true;
}
void BlockRunner::merge_frames(Frame* a, Frame* b, u32 lanes) {
  for (; a != b; a = a->caller, b = b->caller) {
    for (const Area& slot : a->function->slots) {
      if (slot.bytes == 0) {
        u32 &to = *reinterpret_cast<u32*>(a->data + slot.offset),
            from = *reinterpret_cast<u32*>(b->data + slot.offset);
        to = (to & ~lanes) | (from & lanes);
      } else {
        for_lanes(lanes, [&](int l) {
          std::memcpy(a->data + slot.offset + static_cast<u32>(l) * slot.bytes,
                      b->data + slot.offset + static_cast<u32>(l) * slot.bytes, slot.bytes);
        });
      }
    }
    a->lanes |= lanes;
    b->lanes = 0;
  }
}

// Joins splits that have met; picks the running one that is furthest behind (after a spin: the one that has
// not run for longest).
i32 BlockRunner::choose(Warp& w) {
  auto& s = w.splits;
  for (size_t i = 0; i < s.size(); ++i) {
    for (size_t j = i + 1; j < s.size();) {
      const bool free =
          s[i].state != Split::State::kBlockBarrier && s[j].state != Split::State::kBlockBarrier;
      if (s[i].pc == s[j].pc && free && same_call(s[i].frame, s[j].frame, s[j].mask)) {
        merge_frames(s[i].frame, s[j].frame, s[j].mask);
        s[i].mask |= s[j].mask;
        s[i].state = Split::State::kRunning;
        s.erase(s.begin() + static_cast<std::ptrdiff_t>(j));
      } else {
        ++j;
      }
    }
  }
  i32 best = -1;
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i].state != Split::State::kRunning) continue;
    const auto before = [&](const Split& a, const Split& b) { return w.spun ? a.ran < b.ran : behind(a, b); };
    if (best < 0 || before(s[i], s[static_cast<size_t>(best)])) best = static_cast<i32>(i);
  }
  return best;
}

bool BlockRunner::run_warp(Warp& w) {
  constexpr int kTurns =
      1024;  // a loop that makes calls takes two or more each time round, and gives way by itself
  bool progress = false;
  for (int turns = 0; turns < kTurns && !w.splits.empty(); ++turns) {
    const i32 chosen = choose(w);
    w.spun = false;
    if (chosen < 0) {
      if (!release_warp_barrier(w)) break;
      continue;
    }
    Split s = w.splits[static_cast<size_t>(chosen)];
    w.splits.erase(w.splits.begin() + chosen);
    s.ran = ++clock_;
    w.frame = s.frame;
    w.file = s.frame->data;
    progress |= run_split(w, s);
    for (Split& made : w.splits) made.ran = made.ran == 0 ? s.ran : made.ran;
    if (w.spun) return progress;
  }
  w.waits = false;
  return progress;
}

// bar.warp.sync may be reached at different places: lets go once all live members wait.
bool BlockRunner::release_warp_barrier(Warp& w) {
  u32 waiting = 0;
  for (const Split& s : w.splits) {
    if (s.state == Split::State::kWarpWait
        && s.frame->function->code[static_cast<size_t>(s.pc)].flow == Flow::kWarpBarrier)
      waiting |= s.mask;
  }
  bool released = false;
  for (Split& s : w.splits) {
    if (s.state != Split::State::kWarpWait) continue;
    const Insn& insn = s.frame->function->code[static_cast<size_t>(s.pc)];
    if (insn.flow != Flow::kWarpBarrier) continue;
    const u32 members = reinterpret_cast<const u32*>(s.frame->data + insn.op[4])[std::countr_zero(s.mask)];
    if ((members & ~w.exited & ~waiting) != 0) continue;
    s.state = Split::State::kRunning;
    ++s.pc;
    released = true;
  }
  if (released) w.sync = new_interval();
  return released;
}

}  // namespace simgpu
