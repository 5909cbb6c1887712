#include "exec/races.h"

#include <atomic>

#include <sys/mman.h>

#include "memory.h"

namespace simgpu {
namespace {

constexpr u16 kSeveral = 0xffff;

u32 thread_of(const Warp& w, int lane) { return w.index * 32 + static_cast<u32>(lane); }

// True when what `other` did at (epoch, sync) is not ordered before an access of `thread` now.
bool unordered(const Warp& w, u16 other, u32 thread, u32 epoch, u32 sync) {
  if (epoch != w.block->epoch || other == thread) return false;
  if (other != kSeveral && other / 32u == w.index) return sync == w.sync;
  return true;
}

[[noreturn]] void report_shared(Warp& w, const Insn& i, int lane, u32 offset, const char* now,
                                const char* before, u16 other) {
  const std::string who = other == kSeveral ? "several threads" : "thread " + std::to_string(other);
  report(w, i, lane, FaultKind::kSharedRace,
         std::string("race on shared memory at offset ") + std::to_string(offset) + ": " + now + " by thread "
             + std::to_string(thread_of(w, lane)) + " of the block, and " + before + " by " + who
             + ", with no barrier between them");
}

// What the detector knows of four bytes of global memory; valid for the launch that it names.
struct GlobalCell {
  std::atomic<u32> launch;
  u32 writer;  // block + 1; 0: none
  u32 reader;  // block + 1, or kSeveralBlocks
};
constexpr u32 kSeveralBlocks = 0xffffffff;
GlobalCell* cells() {
  static auto* const range = static_cast<GlobalCell*>(
      mmap(nullptr, memory::kReservedBytes / 4 * sizeof(GlobalCell), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (range == MAP_FAILED)
    throw PtxError(
        "simulated GPU: no address space for the race detector; ERGON_SIMGPU_CHECK can leave it out");
  return range;
}

void note_read(SharedCell& c, const Warp& w, u16 thread, u32 epoch) {
  const bool fresh = c.read_epoch != epoch, same_warp = c.reader / 32u == w.index;
  if (!fresh && same_warp && c.read_sync == w.sync) {
    c.several_lanes |= c.reader != thread;
    return;
  }
  c.several_warps = !fresh && (c.several_warps || !same_warp);
  c.several_lanes = false;
  c.reader = thread;
  c.read_epoch = epoch;
  c.read_sync = w.sync;
}
bool read_by_others(const SharedCell& c, const Warp& w, u16 thread, u32 epoch) {
  if (c.read_epoch != epoch) return false;
  if (c.several_warps || c.reader / 32u != w.index) return true;
  return c.read_sync == w.sync && (c.several_lanes || c.reader != thread);
}

void check_shared_race(Warp& w, const Insn& i, int lane, u32 offset, u32 bytes, AccessKind kind) {
  Block& block = *w.block;
  const auto thread = static_cast<u16>(thread_of(w, lane));
  for (u32 at = offset / 4; at <= (offset + bytes - 1) / 4; ++at) {
    SharedCell& c = block.cells[at];
    const u32 byte = at * 4;
    if (unordered(w, c.writer, thread, c.write_epoch, c.write_sync) && bytes >= 4) {
      report_shared(w, i, lane, byte, kind == AccessKind::kRead ? "a read" : "a write", "a write", c.writer);
    }
    if (kind != AccessKind::kAtomic && c.atomic_epoch == block.epoch && c.atomic != thread && bytes >= 4) {
      if (c.atomic == kSeveral || c.atomic / 32u != w.index)
        report_shared(w, i, lane, byte, kind == AccessKind::kRead ? "a read" : "a write", "an atomic update",
                      c.atomic);
    }
    if (kind == AccessKind::kRead) {
      note_read(c, w, thread, block.epoch);
      continue;
    }
    if (read_by_others(c, w, thread, block.epoch) && bytes >= 4) {
      report_shared(w, i, lane, byte, "a write", "a read", c.reader == thread ? kSeveral : c.reader);
    }
    if (kind == AccessKind::kAtomic) {
      c.atomic = c.atomic_epoch == block.epoch && c.atomic != thread ? kSeveral : thread;
      c.atomic_epoch = block.epoch;
    } else {
      c.writer = thread;
      c.write_epoch = block.epoch;
      c.write_sync = w.sync;
    }
  }
}

}  // namespace

void check_shared_races(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets) {
  const u32 epoch = w.block->epoch;
  SharedCell* const all = w.block->cells.data();
  u64 last = ~u64{0};
  for_lanes(mask, [&](int l) {
    if (kind == AccessKind::kRead) {  // of what nobody has written since the last barrier: only noted
      const u16 thread = static_cast<u16>(thread_of(w, l));
      const u64 first = offsets[l] / 4, end = (offsets[l] + bytes - 1) / 4;
      const bool broadcast = offsets[l] == last;
      bool written = false;
      for (u64 at = first; at <= end; ++at)
        written |= all[at].write_epoch == epoch || all[at].atomic_epoch == epoch;
      last = offsets[l];
      if (!written) {
        for (u64 at = first; at <= end; ++at) {
          if (!broadcast || !all[at].several_lanes) note_read(all[at], w, thread, epoch);
        }
        return;
      }
    }
    check_shared_race(w, i, l, static_cast<u32>(offsets[l]), bytes, kind);
  });
}

void mark_written(Warp& w, int lane, u32 offset, u32 bytes) {
  for (u32 at = offset / 4; at <= (offset + bytes - 1) / 4; ++at) {
    SharedCell& c = w.block->cells[at];
    c.writer = static_cast<u16>(thread_of(w, lane));
    c.write_epoch = w.block->epoch;
    c.write_sync = w.sync;
  }
}

void check_global_races(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* addresses) {
  Block& block = *w.block;
  if (kind == AccessKind::kAtomic || i.relaxed || bytes < 4) return;
  const u32 launch = block.launch->id, me = static_cast<u32>(block.linear) + 1;
  GlobalCell* const all = cells();
  for_lanes(mask, [&](int l) {
    const u64 first = (addresses[l] - reinterpret_cast<u64>(memory::base())) / 4;
    for (u64 at = first; at < first + bytes / 4; ++at) {
      GlobalCell& c = all[at];
      if (c.launch.load(std::memory_order_acquire) != launch) {
        c.writer = c.reader = 0;
        c.launch.store(launch, std::memory_order_release);
      }
      const u32 writer = c.writer;
      if (writer != 0 && writer != me && !block.launch->synchronised.load(std::memory_order_relaxed)) {
        report(w, i, l, FaultKind::kGlobalRace,
               std::string("race on global memory: ") + (kind == AccessKind::kRead ? "a read" : "a write")
                   + " by block " + std::to_string(me - 1) + " and a write by block "
                   + std::to_string(writer - 1) + " of the same launch; " + memory::describe(addresses[l]));
      }
      if (kind == AccessKind::kRead) {
        c.reader = c.reader == 0 || c.reader == me ? me : kSeveralBlocks;
      } else {
        if (c.reader != 0 && c.reader != me && !block.launch->synchronised.load(std::memory_order_relaxed)) {
          report(
              w, i, l, FaultKind::kGlobalRace,
              "race on global memory: a write by block " + std::to_string(me - 1) + " and a read by "
                  + (c.reader == kSeveralBlocks ? "several blocks" : "block " + std::to_string(c.reader - 1))
                  + " of the same launch; " + memory::describe(addresses[l]));
        }
        c.writer = me;
      }
    }
  });
}

}  // namespace simgpu
