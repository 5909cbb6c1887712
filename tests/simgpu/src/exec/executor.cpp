// Runs the blocks of one launch over host threads. A warp's lanes that have parted run as splits; the one
// furthest behind goes first, which brings structured code together again. A split that keeps branching
// backwards gives way to other splits, warps and, last, blocks, so that spin waits end.
#include "exec/executor.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <numeric>
#include <thread>

#include <cxxabi.h>

#include "memory.h"
#include "settings.h"

namespace simgpu {

thread_local LaunchCounts* counts = nullptr;

void report(const Warp& w, const Insn& insn, int lane, FaultKind kind, const std::string& message) {
  const Launch& launch = *w.block->launch;
  const Dim3 dim = launch.config.block, index = w.block->index;
  const u32 thread = w.index * 32 + static_cast<u32>(lane);
  const auto triple = [](u32 x, u32 y, u32 z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  int status = 0;
  char* plain = abi::__cxa_demangle(launch.name->c_str(), nullptr, nullptr, &status);
  std::string text = message + "; kernel " + (plain != nullptr ? plain : launch.name->c_str());
  std::free(plain);
  if (const std::string where = launch.program->where(insn); !where.empty()) text += " at " + where;
  text += ", block " + triple(index.x, index.y, index.z) + ", thread "
          + triple(thread % dim.x, thread / dim.x % dim.y, thread / dim.x / dim.y);
  throw Fault(kind, text);
}

BlockRunner::BlockRunner(Launch& launch) : launch_(launch), program_(*launch.program) {
  block_.launch = &launch;
  const u64 bytes = (u64{program_.shared_bytes} + launch.config.dynamic_shared_bytes + 15) / 16 * 16
                    + kSharedGuard + kReservedShared;
  block_.shared.resize(bytes);
  block_.shared_state.resize(bytes + 16);
  block_.cells.resize(bytes / 4 + 5);
  const Dim3 d = launch.config.block;
  threads_ = d.x * d.y * d.z;
  warps_.resize((threads_ + 31) / 32);
  for (u32 i = 0; i < warps_.size(); ++i) {
    warps_[i].block = &block_;
    warps_[i].index = i;
    warps_[i].local.resize(size_t{32} * program_.local_bytes);
  }
  pools_.resize(warps_.size());
}

void BlockRunner::start(u64 linear) {
  static std::atomic<u64> serials{0};
  const Dim3 g = launch_.config.grid;
  block_.linear = linear;
  block_.index = {static_cast<u32>(linear % g.x), static_cast<u32>(linear / g.x % g.y),
                  static_cast<u32>(linear / g.x / g.y)};
  block_.serial = ++serials;
  ++block_.epoch;
  std::fill(block_.shared_state.begin(), block_.shared_state.end(), u8{kUninitialised});
  std::fill_n(block_.shared_state.end() - 16 - kReservedShared, kReservedShared, u8{kInitialised});
  for (Warp& w : warps_) {
    const u32 left = threads_ - w.index * 32, all = left >= 32 ? kFullMask : (1u << left) - 1;
    w.exited = ~all;
    w.copies.clear();
    std::fill(std::begin(w.committed), std::end(w.committed), 0u);
    w.splits.clear();
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
  frame->caller = caller;
  frame->lanes = lanes;
  frame->depth = caller == nullptr ? 0 : caller->depth + 1;
  frame->local_base =
      caller == nullptr ? 0 : (caller->local_base + caller->function->local_bytes + 15) / 16 * 16;
  if (u64{frame->local_base} + function.local_bytes > program_.local_bytes) {
    throw Fault(FaultKind::kOutOfBounds, "the stack of a thread is full ("
                                             + std::to_string(program_.local_bytes) + " bytes): function "
                                             + function.name + " of kernel " + *launch_.name);
  }
  for (const Constant& c : function.locals) {
    const u64 address = frame->local_base + c.value;
    for (u32 l = 0; l < 32; ++l) std::memcpy(frame->data + c.offset + l * c.width, &address, c.width);
  }
  return frame;
}

// A special register's value in a lane of the warp.
u32 BlockRunner::special(const Warp& w, std::string_view name, u32 lane) const {
  const Dim3 d = launch_.config.block, g = launch_.config.grid, b = block_.index;
  const u32 t = w.index * 32 + lane, bit = 1u << lane, below = bit - 1;
  const auto shared = static_cast<u32>(block_.shared.size());
  const std::pair<std::string_view, u32> values[] = {
      {"%tid.x", t % d.x},
      {"%tid.y", t / d.x % d.y},
      {"%tid.z", t / d.x / d.y},
      {"%ntid.x", d.x},
      {"%ntid.y", d.y},
      {"%ntid.z", d.z},
      {"%ctaid.x", b.x},
      {"%ctaid.y", b.y},
      {"%ctaid.z", b.z},
      {"%nctaid.x", g.x},
      {"%nctaid.y", g.y},
      {"%nctaid.z", g.z},
      {"%laneid", lane},
      {"%warpid", w.index},
      {"%nwarpid", static_cast<u32>(warps_.size())},
      {"%smid", static_cast<u32>(block_.linear % 108)},
      {"%nsmid", 108},
      {"%gridid", launch_.id},
      {"%lanemask_eq", bit},
      {"%lanemask_le", below | bit},
      {"%lanemask_lt", below},
      {"%lanemask_ge", ~below},
      {"%lanemask_gt", ~(below | bit)},
      {"%dynamic_smem_size", launch_.config.dynamic_shared_bytes},
      {"%total_smem_size", shared - kReservedShared - kSharedGuard},
      {"%envreg1", static_cast<u32>(launch_.config.grid_workspace >> 32)},
      {"%envreg2", static_cast<u32>(launch_.config.grid_workspace)},
      {"%reserved_smem_offset_1", shared - kReservedShared}};
  return std::find_if(std::begin(values), std::end(values), [&](const auto& v) { return v.first == name; })
      ->second;
}

// A frame stays with its warp: most special registers are the same in the next block.
void BlockRunner::fill_special(Warp& w, Frame& frame) {
  const bool fresh = frame.block_serial == 0;
  frame.block_serial = block_.serial;
  for (const Special& s : frame.function->specials) {
    const std::string_view name = kSpecialNames[s.index];
    auto* slot = reinterpret_cast<u32*>(frame.data + s.offset);
    if (name.starts_with("%ctaid.") || name == "%smid") {
      std::fill_n(slot, 32, special(w, name, 0));
    } else if (fresh) {
      for (u32 l = 0; l < 32; ++l) slot[l] = special(w, name, l);
    }
  }
}

void BlockRunner::turn() {
  bool progress = false;
  const size_t n = warps_.size(), first = launch_.config.order_seed * (block_.linear + ++turns_) % n;
  for (size_t k = 0; k < n; ++k) progress |= run_warp(warps_[(first + k) % n]);
  if (!finished()) release_barrier(!progress);
  if (any_spun_)
    ++spells_;
  else
    spells_ = 0;
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

// Joins splits that have met; picks the running one that is furthest behind (after a spin: the one furthest
// ahead).
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
    if (best < 0 || behind(s[i], s[static_cast<size_t>(best)]) != spun_) best = static_cast<i32>(i);
  }
  spun_ = false;
  return best;
}

bool BlockRunner::run_warp(Warp& w) {
  bool progress = false;
  for (int turns = 0; turns < 64 && !w.splits.empty(); ++turns) {
    const i32 chosen = choose(w);
    if (chosen < 0) {
      if (!release_warp_barrier(w)) break;
      continue;
    }
    Split s = w.splits[static_cast<size_t>(chosen)];
    w.splits.erase(w.splits.begin() + chosen);
    w.frame = s.frame;
    w.file = s.frame->data;
    progress |= run_split(w, s);
    if (spun_) break;
  }
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
  if (released) ++w.sync;
  return released;
}

std::unique_ptr<LaunchCounts> make_counts(const Program& program) {
  auto c = std::make_unique<LaunchCounts>();
  c->executed.resize(program.instructions);
  return c;
}

namespace {

// Instruction counts by class, from the counts by instruction.
void fold(const Program& program, const LaunchCounts& from, Counters& to) {
  for (const auto& f : program.functions) {
    for (size_t i = 0; i < f->code.size(); ++i) {
      to.warp_instructions[static_cast<int>(f->code[i].category)] += from.executed[f->first_count + i];
    }
  }
  to.lane_instructions += from.lanes;
  to += from.counters;
}

constexpr u64 kMostResident = 108 * 16;  // blocks of a launch that may be alive at once
constexpr u64 kDeadlockTurns = 4'000;    // spells of spinning with nothing new to start

class Crew {
 public:
  explicit Crew(Launch& launch)
      : launch_(launch), blocks_(u64{launch.config.grid.x} * launch.config.grid.y * launch.config.grid.z) {}

  Counters run() {
    const int wanted =
        settings().threads > 0 ? settings().threads : static_cast<int>(std::thread::hardware_concurrency());
    const u64 helpers = std::min<u64>(static_cast<u64>(std::max(wanted, 1)), blocks_) - 1;
    std::vector<std::thread> threads;
    for (u64 t = 0; t < helpers; ++t) threads.emplace_back([this] { work(); });
    work();
    for (std::thread& t : threads) t.join();
    if (failure_) std::rethrow_exception(failure_);
    total_.blocks = blocks_;
    const Dim3 d = launch_.config.block;
    total_.warps = blocks_ * ((u64{d.x} * d.y * d.z + 31) / 32);
    return total_;
  }

 private:
  // One host thread: a block at a time; one that only spins is put back and another begun or continued.
  void work() {
    const auto mine = make_counts(*launch_.program);
    counts = mine.get();
    std::deque<std::unique_ptr<BlockRunner>> resident;
    std::unique_ptr<BlockRunner> spare;
    u64 idle_turns = 0;
    try {
      while (!stop_) {
        const bool all_spin = spinning_ >= resident.size();
        u64 linear;
        if ((resident.empty() || (all_spin && resident.size() < kMostResident))
            && (linear = next_.fetch_add(1)) < blocks_) {
          auto runner = spare != nullptr ? std::move(spare) : std::make_unique<BlockRunner>(launch_);
          runner->start(order(linear));
          resident.push_front(std::move(runner));
          spinning_ = 0, idle_turns = 0;
        }
        if (resident.empty()) break;
        BlockRunner& current = *resident.front();
        current.turn();
        if (current.finished()) {
          spare = std::move(resident.front());
          resident.pop_front();
          spinning_ = 0, idle_turns = 0;
        } else if (current.spins()) {
          resident.push_back(std::move(resident.front()));
          resident.pop_front();
          ++spinning_;
          if (++idle_turns > kDeadlockTurns)
            throw Fault(FaultKind::kDeadlock,
                        "no block makes progress: all that are alive spin; kernel " + *launch_.name);
          if (idle_turns % 64 == 0) std::this_thread::yield();
        }
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      stop_ = true;
    }
    counts = nullptr;
    const std::lock_guard lock(mutex_);
    fold(*launch_.program, *mine, total_);
  }

  // Blocks in order, or in an order of the seed's: multiplication by a number without a common factor.
  u64 order(u64 i) const {
    if (launch_.config.order_seed == 0) return i;
    u64 factor = launch_.config.order_seed % blocks_ | 1;
    while (std::gcd(factor, blocks_) != 1) ++factor;
    return (i % blocks_ * (factor % blocks_) + launch_.config.order_seed) % blocks_;
  }

  static thread_local u64 spinning_;
  Launch& launch_;
  const u64 blocks_;
  std::atomic<u64> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
  Counters total_;
};
thread_local u64 Crew::spinning_ = 0;

}  // namespace

Counters execute(Launch& launch) { return Crew(launch).run(); }

}  // namespace simgpu
