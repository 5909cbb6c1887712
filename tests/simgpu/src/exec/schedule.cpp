// Instructions that change where lanes are: branches, calls, exits, barriers.
#include <algorithm>
#include <cstring>
#include <span>

#include "exec/executor.h"

namespace simgpu {
namespace {

constexpr u32 kSpinBudget = 256;     // backward branches before others get their turn
constexpr u32 kProbeInterval = 128;  // backward branches after which a loop is looked at: does it only wait?

// The next place, in the frame of `s`, where another split is or will return to.
i32 next_meeting(const Warp& w, const Split& s) {
  i32 nearest = INT32_MAX;
  for (const Split& other : w.splits) {
    const Frame* f = other.frame;
    i32 pc = other.pc;
    while (f->depth > s.frame->depth) pc = f->return_pc, f = f->caller;
    if (f == s.frame && pc > s.pc) nearest = std::min(nearest, pc);
  }
  return nearest;
}

}  // namespace

bool BlockRunner::run_split(Warp& w, Split s) {
  const Function& function = *s.frame->function;
  const Insn* const code = function.code.data();
  u64* const executed = counts->executed.data() + function.first_count;
  Counters& counters = counts->counters;
  bool first_branch = true;  // backwards
  bool progress = false;
  i32 meeting = w.splits.empty() ? INT32_MAX : next_meeting(w, s);
  for (;;) {
    if (s.pc >= meeting) {
      w.splits.push_back(s);
      return true;
    }
    const Insn& i = code[s.pc];
    u32 mask = s.mask;
    if (i.guard != kNone) mask &= i.guard_negated ? ~w.predicate(i.guard) : w.predicate(i.guard);
    ++executed[s.pc];
    counters.lane_instructions += static_cast<u64>(std::popcount(mask));
    switch (i.flow) {
      case Flow::kNormal:
        if (mask != 0) i.run(w, i, mask);
        ++s.pc;
        progress = true;
        break;
      case Flow::kBranch: {
        progress = true;
        ++counters.branches;
        const u32 rest = s.mask & ~mask;
        if (mask != 0 && rest != 0) {
          ++counters.divergent_branches;
          w.splits.push_back({s.pc + 1, rest, s.frame});
          w.splits.push_back({i.target, mask, s.frame});
          if (i.target <= s.pc && ++w.backward >= kSpinBudget) give_way(w, false);
          return true;
        }
        if (mask != 0 && i.target <= s.pc) {
          // A loop that comes to the same place with the same registers waits for memory to change.
          const std::span now(w.file, function.frame_bytes);
          ++w.backward;
          if (probe_.frame == s.frame && probe_.pc == s.pc && probe_.lanes == s.mask) {
            probe_.frame = nullptr;
            if (std::memcmp(snapshot_.data(), now.data(), now.size()) == 0) {
              w.splits.push_back(s);
              return give_way(w, true), true;
            }
          } else if (w.backward % kProbeInterval == 0 || (first_branch && w.waits)) {
            snapshot_.assign(now.begin(), now.end());
            probe_ = {s.frame, s.pc, s.mask};
          }
          first_branch = false;
          s.pc = i.target;
          if (w.backward >= kSpinBudget) {
            w.splits.push_back(s);
            return give_way(w, false), true;
          }
        } else {
          s.pc = mask != 0 ? i.target : s.pc + 1;
        }
        if (!w.splits.empty()) meeting = next_meeting(w, s);
        break;
      }
      case Flow::kBranchIndexed: {
        const u32* index = w.lanes<u32>(i.op[0]);
        const auto& table = function.tables[static_cast<size_t>(i.target)];
        if (s.mask != mask) w.splits.push_back({s.pc + 1, s.mask & ~mask, s.frame});
        for (u32 left = mask; left != 0;) {
          const u32 k = index[std::countr_zero(left)];
          if (k >= table.size())
            report(w, i, std::countr_zero(left), FaultKind::kOutOfBounds,
                   "brx.idx " + std::to_string(k) + " of a table of " + std::to_string(table.size()));
          u32 same = 0;
          for_lanes(left, [&](int l) { same |= u32{index[l] == k} << l; });
          w.splits.push_back({table[k], same, s.frame});
          left &= ~same;
        }
        ++counters.branches;
        return true;
      }
      case Flow::kCall:
        call(w, i, s, mask);
        return true;
      case Flow::kReturn:
        give_back(w, s, mask);
        return true;
      case Flow::kExit: {
        w.exited |= mask;
        progress = true;
        for (Frame* f = s.frame; f != nullptr; f = f->caller) f->lanes &= ~mask;
        s.mask &= ~mask;
        ++s.pc;
        if (s.mask == 0) return true;
        break;
      }
      case Flow::kBlockBarrier: {
        if (mask == 0) {
          ++s.pc;
          break;
        }
        if (s.mask != mask) w.splits.push_back({s.pc + 1, s.mask & ~mask, s.frame});
        const u32 id = w.lanes<u32>(i.op[0])[std::countr_zero(mask)];
        if (id >= 16)
          report(w, i, std::countr_zero(mask), FaultKind::kBarrierDivergence,
                 "barrier " + std::to_string(id) + "; there are 16");
        const u32 expected = i.op[1] == kNone ? 0 : w.lanes<u32>(i.op[1])[std::countr_zero(mask)];
        Split waiting{s.pc, mask, s.frame, Split::State::kBlockBarrier, id, expected};
        if (i.mode == kBarrierArrive) {
          arrived_[id] += static_cast<u32>(std::popcount(mask));
          waiting.state = Split::State::kRunning;
          ++waiting.pc;
        }
        w.splits.push_back(waiting);
        return true;
      }
      case Flow::kWarpBarrier:
      case Flow::kWarpSync: {
        const u32* members = w.lanes<u32>(i.op[4]);
        u32 parked = 0;
        for (u32 left = mask; left != 0;) {
          const int first = std::countr_zero(left);
          u32 group = 0;
          for_lanes(left, [&](int l) { group |= u32{members[l] == members[first]} << l; });
          left &= ~group;
          const u32 wanted = members[first];
          if ((group & ~wanted) != 0)
            report(w, i, std::countr_zero(group & ~wanted), FaultKind::kInactiveLane,
                   "the member mask does not name the lane that executes it");
          const u32 missing = wanted & ~group & ~(i.flow == Flow::kWarpBarrier ? w.exited : 0u);
          if ((missing & w.exited) != 0)
            report(w, i, first, FaultKind::kInactiveLane,
                   "the member mask names lane " + std::to_string(std::countr_zero(missing & w.exited))
                       + ", which has exited");
          if (missing != 0) {
            parked |= group;
          } else {
            w.sync = new_interval();
            i.run(w, i, group);
          }
        }
        if (parked != 0) {
          if (s.mask != parked) w.splits.push_back({s.pc + 1, s.mask & ~parked, s.frame});
          w.splits.push_back({s.pc, parked, s.frame, Split::State::kWarpWait});
          return progress || s.mask != parked;
        }
        ++s.pc;
        progress = true;
        break;
      }
    }
  }
}

void BlockRunner::give_way(Warp& w, bool waits) {
  w.backward = 0;
  w.spun = true;
  w.waits = waits;
}

void BlockRunner::call(Warp& w, const Insn& insn, Split s, u32 mask) {
  if (s.mask != mask) w.splits.push_back({s.pc + 1, s.mask & ~mask, s.frame});
  if (mask == 0) return;
  const Call& c = s.frame->function->calls[static_cast<size_t>(insn.target)];
  if (c.callee == nullptr) {
    run_builtin(w, insn, c, mask);
    w.splits.push_back({s.pc + 1, mask, s.frame});
    return;
  }
  Frame* frame = enter(w, *c.callee, s.frame, mask);
  frame->return_pc = s.pc + 1;
  frame->call = static_cast<u32>(insn.target);
  for (size_t a = 0; a < c.arguments.size(); ++a) {
    const Area &from = c.arguments[a], &to = c.callee->params.at(a);
    for_lanes(mask, [&](int l) {
      std::memcpy(frame->data + to.offset + static_cast<u32>(l) * to.bytes,
                  s.frame->data + from.offset + static_cast<u32>(l) * from.bytes,
                  std::min(from.bytes, to.bytes));
    });
  }
  w.splits.push_back({0, mask, frame});
}

void BlockRunner::give_back(Warp& w, Split s, u32 mask) {
  if (s.mask != mask) w.splits.push_back({s.pc + 1, s.mask & ~mask, s.frame});
  if (mask == 0) return;
  Frame* const caller = s.frame->caller;
  const Call& c = caller->function->calls[s.frame->call];
  for (size_t r = 0; r < c.results.size(); ++r) {
    const Area &from = s.frame->function->results.at(r), &to = c.results[r];
    for_lanes(mask, [&](int l) {
      std::memcpy(caller->data + to.offset + static_cast<u32>(l) * to.bytes,
                  s.frame->data + from.offset + static_cast<u32>(l) * from.bytes,
                  std::min(from.bytes, to.bytes));
    });
  }
  s.frame->lanes &= ~mask;
  w.splits.push_back({s.frame->return_pc, mask, caller});
}

// Lets a barrier's threads go once all have come. `stuck`: nothing else can run, so that whoever is missing
// never comes.
void BlockRunner::release_barrier(bool stuck) {
  u32 arrived[16], expected[16] = {};
  std::copy(std::begin(arrived_), std::end(arrived_), arrived);
  const Insn* at[16] = {};
  Warp* waiting = nullptr;
  const Split* waiting_split = nullptr;
  u32 exited = 0;
  for (Warp& w : warps_) {
    exited += static_cast<u32>(std::popcount(w.exited));
    for (const Split& s : w.splits) {
      const Insn& insn = s.frame->function->code[static_cast<size_t>(s.pc)];
      if (s.state == Split::State::kWarpWait && stuck) {
        report(w, insn, std::countr_zero(s.mask), FaultKind::kBarrierDivergence,
               "waits for lanes of its member mask that never come");
      }
      if (s.state != Split::State::kBlockBarrier) continue;
      waiting = &w, waiting_split = &s;
      arrived[s.barrier] += static_cast<u32>(std::popcount(s.mask));
      expected[s.barrier] = s.expected;
      if (at[s.barrier] != nullptr && at[s.barrier] != &insn && s.expected == 0 && stuck) {
        report(w, insn, std::countr_zero(s.mask), FaultKind::kBarrierDivergence,
               "threads of the block wait at different barriers: here, and at "
                   + program_.trace(*at[s.barrier]));
      }
      at[s.barrier] = &insn;
    }
  }
  for (u32 id = 0; id < 16; ++id) {
    if (at[id] != nullptr && arrived[id] >= (expected[id] != 0 ? expected[id] : threads_))
      return pass_barrier(id);
  }
  if (!stuck || waiting == nullptr) return;
  const u32 id = waiting_split->barrier, wanted = expected[id] != 0 ? expected[id] : threads_;
  const u32 gone = exited - (static_cast<u32>(warps_.size()) * 32 - threads_);
  report(*waiting, *at[id], std::countr_zero(waiting_split->mask), FaultKind::kBarrierDivergence,
         "barrier not reached by all: " + std::to_string(arrived[id]) + " of " + std::to_string(wanted)
             + " threads wait, " + std::to_string(gone) + " have exited");
}

// The count starts again, for all warps, before it would overflow a stamp; what is known of the present epoch
// is then lost.
u32 BlockRunner::new_interval() {
  if (const u32 interval = next_interval(block_); interval != 0) return interval;
  forget_shared_accesses(block_);
  for (Warp& w : warps_) w.sync = block_.epoch;
  return block_.interval;
}

void BlockRunner::pass_barrier(u32 id) {
  block_.epoch = new_interval();
  for (Warp& w : warps_) w.sync = block_.epoch;
  ++counts->counters.barriers;
  arrived_[id] = 0;
  u32 count = 0, all = 0, any = 0;
  const auto each = [&](auto&& f) {
    for (Warp& w : warps_) {
      for (Split& s : w.splits) {
        if (s.state == Split::State::kBlockBarrier && s.barrier == id)
          f(s, s.frame->function->code[static_cast<size_t>(s.pc)]);
      }
    }
  };
  all = 1;
  each([&](const Split& s, const Insn& insn) {
    if (insn.op[3] == kNone) return;
    const u32 p = *reinterpret_cast<const u32*>(s.frame->data + insn.op[3]) & s.mask;
    count += static_cast<u32>(std::popcount(p));
    all &= p == s.mask;
    any |= p != 0;
  });
  each([&](Split& s, const Insn& insn) {
    if (insn.mode == kBarrierPopcount) {
      for_lanes(s.mask, [&](int l) { reinterpret_cast<u32*>(s.frame->data + insn.op[2])[l] = count; });
    } else if (insn.mode == kBarrierAnd || insn.mode == kBarrierOr) {
      u32& p = *reinterpret_cast<u32*>(s.frame->data + insn.op[2]);
      p = (p & ~s.mask) | ((insn.mode == kBarrierAnd ? all : any) != 0 ? s.mask : 0);
    }
    s.state = Split::State::kRunning;
    ++s.pc;
  });
}

}  // namespace simgpu
