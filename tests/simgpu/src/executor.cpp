// Runs the blocks of one launch over host threads. Inside a warp the split with the smallest pc runs first, which
// reconverges structured code; a split that keeps branching backwards gives way, so that spin waits make progress.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#include "warp.h"

namespace simgpu {

void report(const Warp& w, const Insn& insn, int lane, const std::string& message) {
  const Block& b = *w.block;
  const u32 thread = w.index * 32 + static_cast<u32>(std::max(lane, 0));
  auto triple = [](u32 x, u32 y, u32 z) { return "(" + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z) + ")"; };
  std::string text = message + "; kernel " + b.kernel->name;
  const auto& files = b.kernel->module->files;
  if (auto it = files.find(insn.file); it != files.end()) text += " at " + it->second + ":" + std::to_string(insn.line);
  text += ", block " + triple(b.index.x, b.index.y, b.index.z) + ", thread " + triple(thread % b.dim.x, thread / b.dim.x % b.dim.y, thread / b.dim.x / b.dim.y);
  throw PtxError(text);
}

namespace {

constexpr int kSpinBudget = 2048;  // backward branches before another split or warp gets its turn

class BlockRunner {
 public:
  BlockRunner(const Kernel& kernel, const u8* params, Dim grid, Dim dim, size_t dynamic_shared) : kernel_(kernel) {
    block_.kernel = &kernel;
    block_.params = params;
    block_.grid = grid;
    block_.dim = dim;
    const size_t bytes = kernel.shared_bytes + dynamic_shared;
    block_.shared.resize(bytes);
    block_.shared_state.resize(bytes);
    block_.cells.resize(bytes);
    threads_ = dim.x * dim.y * dim.z;
    warps_.resize((threads_ + 31) / 32);
    file_.resize(warps_.size() * kernel.file_bytes / 64 + 1);
  }

  void start(u64 index) {
    block_.index = {u32(index % block_.grid.x), u32(index / block_.grid.x % block_.grid.y), u32(index / block_.grid.x / block_.grid.y)};
    std::fill(block_.shared_state.begin(), block_.shared_state.end(), u8(kUninitialised));
    ++block_.epoch;
    for (u32 i = 0; i < warps_.size(); ++i) {
      Warp& w = warps_[i];
      w = Warp{};
      w.block = &block_;
      w.index = i;
      w.file = reinterpret_cast<u8*>(file_.data()) + size_t(i) * kernel_.file_bytes;
      const u32 rest = threads_ - i * 32, all = rest >= 32 ? kFullMask : (1u << rest) - 1;
      w.exited = ~all;
      w.splits.push_back({0, all});
      fill_slots(w);
    }
  }

  bool finished() const {
    return std::all_of(warps_.begin(), warps_.end(), [](const Warp& w) { return w.splits.empty(); });
  }

  // One turn for each warp that can run.
  void turn(LaunchCounters& counters) {
    bool progress = false;
    for (Warp& w : warps_) progress |= run_warp(w, counters);
    if (!progress && !finished()) release_barrier();
  }

 private:
  struct alignas(64) Line { u8 bytes[64]; };

  void fill_slots(Warp& w) {
    for (const Constant& c : kernel_.constants) {
      for (int l = 0; l < 32; ++l) write_any(w, c.slot, l, c.value);
    }
    const Dim d = block_.dim, g = block_.grid, b = block_.index;
    for (const Special& s : kernel_.specials) {
      for (u32 l = 0; l < 32; ++l) {
        const u32 t = w.index * 32 + l;
        const u32 values[] = {t % d.x, t / d.x % d.y, t / d.x / d.y, d.x, d.y, d.z, b.x, b.y, b.z, g.x, g.y, g.z, l, w.index,
                              (1u << l) - 1, (2u << l) - 1, 1u << l, ~((1u << l) - 1), ~((2u << l) - 1)};
        lanes<u32>(w, s.slot)[l] = values[s.index];
      }
    }
  }

  // Returns false when no split of the warp could run.
  bool run_warp(Warp& w, LaunchCounters& counters) {
    bool progress = false;
    for (int turns = 0; turns < 64; ++turns) {
      const int chosen = choose(w);
      if (chosen < 0) {
        if (!parked_together(w)) break;
        continue;
      }
      Split s = w.splits[chosen];
      w.splits.erase(w.splits.begin() + chosen);
      progress |= run_split(w, s, counters);
    }
    return progress;
  }

  int choose(Warp& w) {
    int best = -1;
    for (size_t i = 0; i < w.splits.size(); ++i) {
      for (size_t j = i + 1; j < w.splits.size();) {  // meet: same pc, both free to run or both parked there
        const bool same = w.splits[i].pc == w.splits[j].pc && w.splits[i].state != SplitState::kAtBlockBarrier && w.splits[j].state != SplitState::kAtBlockBarrier;
        if (same) {
          w.splits[i].mask |= w.splits[j].mask;
          w.splits[i].state = SplitState::kRunning;
          w.splits.erase(w.splits.begin() + j);
        } else {
          ++j;
        }
      }
    }
    for (size_t i = 0; i < w.splits.size(); ++i) {
      if (w.splits[i].state != SplitState::kRunning) continue;
      if (best < 0 || (w.splits[i].pc < w.splits[best].pc) != prefer_last_) best = static_cast<int>(i);
    }
    prefer_last_ = false;
    return best;
  }

  // All remaining splits wait for members: bar.warp.sync may be reached at different places.
  bool parked_together(Warp& w) {
    u32 together = 0;
    for (const Split& s : w.splits) {
      if (s.state == SplitState::kParked && kernel_.code[s.pc].flow == Flow::kWarpBarrier) together |= s.mask;
    }
    bool released = false;
    for (Split& s : w.splits) {
      const Insn& insn = kernel_.code[s.pc];
      if (s.state != SplitState::kParked || insn.flow != Flow::kWarpBarrier) continue;
      const u32 members = lanes<u32>(w, insn.op[0])[std::countr_zero(s.mask)];
      if (members & ~w.exited & ~together) continue;
      s.state = SplitState::kRunning;
      ++s.pc;
      released = true;
    }
    if (released) ++w.sync;
    return released;
  }

  bool run_split(Warp& w, Split s, LaunchCounters& counters) {
    int budget = kSpinBudget;
    u64 instructions = 0, lane_count = 0;
    bool progress = false;
    int next = 1 << 30;
    for (const Split& o : w.splits) {
      if (o.state != SplitState::kAtBlockBarrier && o.pc >= s.pc) next = std::min(next, o.pc);
    }
    const Insn* code = kernel_.code.data();
    auto leave = [&] {
      counters.warp_instructions += instructions;
      counters.lane_instructions += lane_count;
    };
    for (;;) {
      if (s.pc >= next && progress) {
        w.splits.push_back(s);
        return leave(), true;
      }
      const Insn& i = code[s.pc];
      u32 mask = s.mask;
      if (i.guard >= 0) {
        const u32 p = *reinterpret_cast<u32*>(w.file + i.guard);
        mask &= i.guard_negated ? ~p : p;
      }
      ++instructions;
      lane_count += std::popcount(mask);
      if (i.flow == Flow::kNormal) {
        if (mask) i.run(w, i, mask);
        ++s.pc;
        progress = true;
        continue;
      }
      if (i.flow == Flow::kBranch) {
        progress = true;
        const u32 rest = s.mask & ~mask;
        if (mask && rest) {
          w.splits.push_back({s.pc + 1, rest});
          w.splits.push_back({i.target, mask});
          return leave(), true;
        }
        const bool back = mask && i.target <= s.pc;
        s.pc = mask ? i.target : s.pc + 1;
        if (back && --budget == 0) {
          w.splits.push_back(s);
          prefer_last_ = true;
          return leave(), true;
        }
        if (back && !w.splits.empty()) {  // the smallest pc may now be ours again; look at all others
          next = 1 << 30;
          for (const Split& o : w.splits) {
            if (o.state != SplitState::kAtBlockBarrier && o.pc >= s.pc) next = std::min(next, o.pc);
          }
        }
        continue;
      }
      if (i.flow == Flow::kExit) {
        w.exited |= mask;
        exited_early_ = true;
        s.mask &= ~mask;
        ++s.pc;
        progress = true;
        if (!s.mask) return leave(), true;
        continue;
      }
      if (i.flow == Flow::kBlockBarrier) {
        s.state = SplitState::kAtBlockBarrier;
        s.barrier = lanes<u32>(w, i.op[0])[0];
        s.expected = i.count > 1 ? lanes<u32>(w, i.op[1])[0] : 0;
        w.splits.push_back(s);
        return leave(), true;
      }
      if (mask) {
        const u32 members = lanes<u32>(w, i.flow == Flow::kWarpBarrier ? i.op[0] : i.op[i.count - 1])[std::countr_zero(mask)];
        if (members & ~mask & ~(i.flow == Flow::kWarpBarrier ? w.exited : 0)) {
          if (members & ~mask & w.exited) report(w, i, std::countr_zero(mask), "the member mask names a lane that has exited");
          s.state = SplitState::kParked;
          w.splits.push_back(s);
          return leave(), progress;
        }
        if (!(members & (mask & -mask))) report(w, i, std::countr_zero(mask), "the member mask does not name the executing lane");
        ++w.sync;
        if (i.run) i.run(w, i, mask);
      }
      ++s.pc;
      progress = true;
    }
  }

  void release_barrier() {
    u32 arrived[16] = {}, expected[16] = {};
    int pc[16];
    std::fill(pc, pc + 16, -1);
    u32 alive = 0;
    Warp* waiting = nullptr;
    for (Warp& w : warps_) {
      alive += std::popcount(~w.exited);
      for (const Split& s : w.splits) {
        waiting = &w;
        if (s.state == SplitState::kParked) report(w, kernel_.code[s.pc], std::countr_zero(s.mask), "warp-synchronous instruction waits for lanes that never arrive");
        arrived[s.barrier & 15] += std::popcount(s.mask);
        expected[s.barrier & 15] = s.expected;
        int& at = pc[s.barrier & 15];
        if (s.expected == 0 && at >= 0 && at != s.pc) report(w, kernel_.code[s.pc], std::countr_zero(s.mask), "threads of the block wait at different barriers");
        at = s.pc;
      }
    }
    for (u32 id = 0; id < 16; ++id) {
      if (!arrived[id] || arrived[id] < (expected[id] ? expected[id] : threads_)) continue;
      ++block_.epoch;
      for (Warp& w : warps_) {
        for (Split& s : w.splits) {
          if (s.barrier == id) s.state = SplitState::kRunning, ++s.pc;
        }
      }
      return;
    }
    const Split& s = waiting->splits.front();
    report(*waiting, kernel_.code[s.pc], std::countr_zero(s.mask), "barrier not reached by all threads of the block: " + std::to_string(arrived[s.barrier & 15]) + " of " + std::to_string(threads_) + " wait, " + std::to_string(threads_ - alive) + " have exited");
  }

  const Kernel& kernel_;
  Block block_;
  u32 threads_ = 0;
  std::vector<Warp> warps_;
  std::vector<Line> file_;
  bool prefer_last_ = false, exited_early_ = false;
};

}  // namespace

LaunchCounters execute(Kernel& kernel, Dim grid, Dim dim, void** args, size_t dynamic_shared, bool) {
  decode(kernel);
  std::vector<u8> params(kernel.param_bytes + 16);
  for (size_t i = 0; i < kernel.params.size(); ++i) memcpy(&params[kernel.params[i].offset], args[i], kernel.params[i].size);
  const u64 blocks = u64(grid.x) * grid.y * grid.z;
  std::atomic<u64> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  LaunchCounters total;
  total.blocks = blocks;
  auto work = [&] {
    LaunchCounters mine;
    try {
      BlockRunner runner(kernel, params.data(), grid, dim, dynamic_shared);
      for (u64 b; (b = next.fetch_add(1)) < blocks;) {
        for (runner.start(b); !runner.finished();) runner.turn(mine);
      }
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = blocks;
    }
    std::lock_guard lock(mutex);
    total.warp_instructions += mine.warp_instructions;
    total.lane_instructions += mine.lane_instructions;
  };
  const char* setting = getenv("ERGON_SIMGPU_THREADS");
  const u64 wanted = setting ? strtoull(setting, nullptr, 10) : std::thread::hardware_concurrency();
  std::vector<std::thread> threads;
  for (u64 t = 1; t < std::min(wanted, blocks); ++t) threads.emplace_back(work);
  work();
  for (std::thread& t : threads) t.join();
  if (failure) std::rethrow_exception(failure);
  return total;
}

}  // namespace simgpu
