#include "exec/races.h"

#include <algorithm>

#include <sys/mman.h>

#include "exec/access.h"
#include "memory.h"

namespace simgpu {
namespace {

// --- shared memory ---
//
// Each 2^grain bytes of shared memory have a stamp of the last write, of the last reads and of the last
// atomic update: the interval in which it happened, and the warp and lane. A stamp of an interval before the
// block's last barrier says nothing any more.

constexpr u32 kLaneBits = 6, kWarpBits = 6, kIntervals = u32{1} << (32 - kLaneBits - kWarpBits);
constexpr u32 kSeveral = 32;  // as a lane: of one warp; as a warp: of the block
constexpr u32 kLaneMask = (1u << kLaneBits) - 1, kWarpMask = (1u << kWarpBits) - 1;

constexpr u32 stamp(u32 interval, u32 warp, u32 lane) {
  return interval << (kLaneBits + kWarpBits) | warp << kLaneBits | lane;
}
constexpr u32 lane_of(u32 s) { return s & kLaneMask; }
constexpr u32 warp_of(u32 s) { return s >> kLaneBits & kWarpMask; }

// Who accesses now.
struct Accessor {
  u32 epoch, warp, interval;
  explicit Accessor(const Warp& w)
      : epoch(stamp(w.block->epoch, 0, 0)),
        warp(w.index),
        interval(stamp(std::min(w.sync, w.block->interval), w.index, 0)) {}
  u32 mine(u32 lane) const { return interval | lane; }
  // Whether what the stamp tells is not ordered before an access of the lane now: by another warp since the
  // last barrier, or by another lane of this warp since its last convergence point.
  bool unordered(u32 s, u32 lane) const {
    const bool other_warp = warp_of(s) != warp, other_lane = lane_of(s) != lane;
    const bool same_interval = s >= interval;
    return (s >= epoch) & (other_warp | (same_interval & other_lane));
  }
  // The stamp after a read by the lane.
  u32 read(u32 s, u32 lane) const {
    const u32 several_lanes = interval | kSeveral,
              several_warps = interval - (warp << kLaneBits) + stamp(0, kSeveral, 0);
    const u32 same_warp = s < interval || s == mine(lane) ? mine(lane) : several_lanes;
    return s < epoch                ? mine(lane)
           : warp_of(s) == warp     ? same_warp
           : warp_of(s) == kSeveral ? s
                                    : several_warps;
  }
};

std::string thread_name(u32 s) {
  if (warp_of(s) == kSeveral) return "several threads";
  if (lane_of(s) == kSeveral) return "several threads of warp " + std::to_string(warp_of(s));
  return "thread " + std::to_string(warp_of(s) * 32 + lane_of(s));
}
[[noreturn]] void report_shared(Warp& w, const Insn& i, int lane, u32 offset, AccessKind now,
                                const char* before, u32 s) {
  report(w, i, lane, FaultKind::kSharedRace,
         "race on " + describe_shared(w, offset) + ": " + (now == AccessKind::kRead ? "a read" : "a write")
             + " by thread " + std::to_string(w.index * 32 + static_cast<u32>(lane)) + " of the block, and "
             + before + " by " + thread_name(s) + ", with no barrier between them");
}

// The cells of an access one by one, in the order of the lanes: reports, or notes it.
void check_in_order(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets) {
  Block& block = *w.block;
  const Accessor me(w);
  const u32 grain = block.launch->program->shared_grain;
  for_lanes(mask, [&](int l) {
    const auto lane = static_cast<u32>(l);
    for (u32 at = static_cast<u32>(offsets[l]) >> grain; at <= (offsets[l] + bytes - 1) >> grain; ++at) {
      u32 &written = block.written[at], &read = block.read[at], &updated = block.updated[at];
      if (me.unordered(written, lane)) report_shared(w, i, l, at << grain, kind, "a write", written);
      const bool by_other_warp = updated >= me.epoch && warp_of(updated) != me.warp;
      if (kind != AccessKind::kAtomic && by_other_warp)
        report_shared(w, i, l, at << grain, kind, "an atomic update", updated);
      if (kind == AccessKind::kRead) {
        read = me.read(read, lane);
        continue;
      }
      if (me.unordered(read, lane)) report_shared(w, i, l, at << grain, kind, "a read", read);
      if (kind == AccessKind::kAtomic) {
        updated = me.read(updated, lane);
        block.last_update = w.sync;
      } else {
        written = me.mine(lane);
      }
    }
  });
}

// kCells cells of every lane: false when one by one has to be looked at, which is as if nothing had been
// done.
template <u32 kCells>
bool check_together(Warp& w, u32 mask, AccessKind kind, const u64* offsets, Pattern pattern) {
  Block& block = *w.block;
  const Accessor me(w);
  const u32 grain = block.launch->program->shared_grain, first = static_cast<u32>(offsets[0]) >> grain;
  u32 *const written = block.written.data(), *const read = block.read.data();
  u32 wrong = 0;
  if (pattern == Pattern::kSame) {
    if (kind != AccessKind::kRead) return false;
    for (u32 k = 0; k < kCells; ++k) wrong |= me.unordered(written[first + k], kSeveral);
    if (wrong != 0) return false;
    for (u32 k = 0; k < kCells; ++k) read[first + k] = me.read(me.read(read[first + k], 0), 1);
    return true;
  }
  if (pattern == Pattern::kContiguous) {
    if (kind == AccessKind::kRead) {
      for (u32 c = 0; c < 32 * kCells; ++c) wrong |= me.unordered(written[first + c], c / kCells);
      if (wrong != 0) return false;
      for (u32 c = 0; c < 32 * kCells; ++c) read[first + c] = me.read(read[first + c], c / kCells);
    } else {
      for (u32 c = 0; c < 32 * kCells; ++c)
        wrong |= me.unordered(written[first + c], c / kCells) | me.unordered(read[first + c], c / kCells);
      if (wrong != 0) return false;
      for (u32 c = 0; c < 32 * kCells; ++c) written[first + c] = me.mine(c / kCells);
    }
    return true;
  }
  constexpr u32 kAll = 32 * kCells;
  u32 cell[32], old_write[kAll], old_read[kAll], now[kAll];
  for (u32 l = 0; l < 32; ++l) {
    // Lanes that take no part have cells of their own at the end.
    const auto unused = static_cast<u32>(block.written.size()) - kUnusedCells + l * kCells;
    cell[l] = (mask >> l & 1) != 0 ? static_cast<u32>(offsets[l]) >> grain : unused;
    std::memcpy(old_write + l * kCells, written + cell[l], sizeof(u32[kCells]));
    std::memcpy(old_read + l * kCells, read + cell[l], sizeof(u32[kCells]));
  }
  const auto scatter = [&](u32* to, const u32* values) {
    for (u32 l = 0; l < 32; ++l) std::memcpy(to + cell[l], values + l * kCells, sizeof(u32[kCells]));
  };
  const auto differing = [&](const u32* from, const u32* values) {
    u32 different = 0;
    for (u32 l = 0; l < 32; ++l)
      different |= u32{std::memcmp(from + cell[l], values + l * kCells, sizeof(u32[kCells])) != 0} << l;
    return different;
  };
  for (u32 c = 0; c < kAll; ++c) wrong |= me.unordered(old_write[c], c / kCells);
  if (kind == AccessKind::kWrite) {
    for (u32 c = 0; c < kAll; ++c) wrong |= me.unordered(old_read[c], c / kCells);
    if (wrong != 0) return false;
    for (u32 c = 0; c < kAll; ++c) now[c] = me.mine(c / kCells);
    scatter(written, now);
    const bool twice = differing(written, now) != 0;  // two lanes wrote one place
    if (twice) scatter(written, old_write);
    if (mask != kFullMask) std::fill(block.written.end() - kUnusedCells, block.written.end(), 0u);
    return !twice;
  }
  if (wrong != 0) return false;
  u32 changed = 0;
  for (u32 c = 0; c < kAll; ++c) {
    now[c] = me.read(old_read[c], c / kCells);
    changed |= now[c] ^ old_read[c];
  }
  if (changed == 0) return true;
  scatter(read, now);
  for_lanes(differing(read, now), [&](int l) {  // of lanes that read one place the last has left its stamp
    for (u32 k = 0; k < kCells; ++k) {
      u32& s = read[cell[l] + k];
      s = me.read(s, static_cast<u32>(l));
    }
  });
  if (mask != kFullMask) std::fill(block.read.end() - kUnusedCells, block.read.end(), 0u);
  return true;
}

// --- global memory ---
//
// A cell holds, from the top: 24 bits of the launch, 20 of the block that wrote, 20 of the block that read;
// blocks count from 1. It is valid for its launch only. A sector of 32 bytes that is only accessed as a whole
// has one cell; the first access to a part of it spreads the cell over those of its places, 2^grain bytes
// each. Blocks of other host threads change cells at the same time: a cell is one word and holds what has
// happened, so that what is lost is at most a race.

constexpr u32 kBlockBits = 20;
constexpr u64 kBlockMask = (u64{1} << kBlockBits) - 1, kSeveralBlocks = kBlockMask;
constexpr u64 kSpread = kBlockMask;  // as the writer of a sector: the cells of its places hold
constexpr u32 kLaunchTags = u32{1} << 24;
constexpr u32 kSectorShift = 5;

u64 tag_of_launch(u32 id) { return u64{id % (kLaunchTags - 1) + 1} << (2 * kBlockBits); }
// Of a million blocks some share a number: a race between two such blocks is missed.
u64 number_of_block(u64 linear) { return linear % (kBlockMask - 1) + 1; }

struct Cell {
  u64 writer, reader;
};
inline Cell open(u64 cell, u64 tag) {
  const u64 valid = (cell ^ tag) >> (2 * kBlockBits) == 0 ? cell : 0;
  return {valid >> kBlockBits & kBlockMask, valid & kBlockMask};
}

// One access of a run of lanes whose bytes follow each other, from the offset `start` in the reserved range.
struct GlobalAccess {
  Warp& warp;
  const Insn& insn;
  AccessKind kind;
  u64 start;
  u32 bytes;  // of a lane
  int lane;   // the first
  u64 tag, me;

  bool races(Cell old) const {
    const bool written = (old.writer != 0) & (old.writer != me),
               read = (old.reader != 0) & (old.reader != me);
    return kind == AccessKind::kRead ? written : written | read;
  }
  // What a race was found with stays for the report.
  u64 after(Cell old) const {
    if (kind != AccessKind::kRead)
      return tag | (old.writer != 0 ? old.writer : me) << kBlockBits | old.reader;
    return tag | old.writer << kBlockBits | (old.reader == 0 || old.reader == me ? me : kSeveralBlocks);
  }
  [[noreturn]] void report_race(u64 offset, Cell old) const {
    const bool written = old.writer != 0 && old.writer != me;
    const u64 other = written ? old.writer : old.reader;
    const int l = lane + static_cast<int>((std::max(offset, start) - start) / bytes);
    report(warp, insn, l, FaultKind::kGlobalRace,
           "race on global memory at " + hex(memory::ranges.start + offset) + ": "
               + (kind == AccessKind::kRead ? "a read" : "a write") + " by block "
               + std::to_string(warp.block->linear) + " and a " + (written ? "write" : "read") + " by "
               + (other == kSeveralBlocks ? "several blocks" : "block " + std::to_string(other - 1))
               + " of the same launch; " + memory::describe(memory::ranges.start + offset));
  }
  // Cells first to end - 1, 2^shift bytes each.
  void check_cells(u64* cells, u64 first, u64 end, u32 shift) const {
    u64 wrong = 0;
    for (u64 c = first; c < end; ++c) {
      const Cell old = open(cells[c], tag);
      wrong |= races(old);
      cells[c] = after(old);
    }
    if (wrong == 0) return;
    for (u64 c = first; c < end; ++c) {
      const Cell old = open(cells[c], tag);
      if (races(old)) report_race(c << shift, old);
    }
  }
  void check_whole_sectors(u64 first, u64 end, u32 grain) const {
    u64* const sectors = memory::ranges.sectors;
    u64 spread = 0, wrong = 0;
    for (u64 s = first; s < end; ++s) {
      const Cell old = open(sectors[s], tag);
      const bool is_spread = old.writer == kSpread;
      spread |= is_spread;
      wrong |= !is_spread & races(old);
      sectors[s] = is_spread ? sectors[s] : after(old);
    }
    if ((spread | wrong) == 0) return;
    const u32 shift = kSectorShift - grain;
    for (u64 s = first; s < end; ++s) {
      const Cell old = open(sectors[s], tag);
      if (old.writer == kSpread)
        check_cells(memory::ranges.cells, s << shift, (s + 1) << shift, grain);
      else if (races(old))
        report_race(s << kSectorShift, old);
    }
  }
  // Bytes from `first` to `end` of sectors that are not accessed as a whole.
  void check_parts(u64 first, u64 end, u32 grain) const {
    if (first >= end) return;
    const u32 shift = kSectorShift - grain;
    for (u64 s = first >> kSectorShift; s <= (end - 1) >> kSectorShift; ++s) {
      u64& sector = memory::ranges.sectors[s];
      const Cell old = open(sector, tag);
      if (old.writer == kSpread) continue;
      if (old.writer != 0 || old.reader != 0)
        std::fill_n(memory::ranges.cells + (s << shift), u64{1} << shift, sector);
      sector = tag | kSpread << kBlockBits;
    }
    check_cells(memory::ranges.cells, first >> grain, ((end - 1) >> grain) + 1, grain);
  }
  void check(int lanes) const {
    const u32 grain = warp.block->launch->program->global_grain;
    const u64 end = start + u64{bytes} * static_cast<u64>(lanes);
    const u64 first_whole = (start + 31) >> kSectorShift, end_whole = end >> kSectorShift;
    if (first_whole >= end_whole) return check_parts(start, end, grain);
    check_parts(start, first_whole << kSectorShift, grain);
    check_whole_sectors(first_whole, end_whole, grain);
    check_parts(end_whole << kSectorShift, end, grain);
  }
};

}  // namespace

u32 next_interval(Block& block) { return ++block.interval < kIntervals ? block.interval : 0; }

void forget_shared_accesses(Block& block) {
  for (auto* stamps : {&block.written, &block.read, &block.updated})
    std::fill(stamps->begin(), stamps->end(), 0u);
  block.last_update = 0;
  block.interval = block.epoch = 1;
}

void check_shared_races(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets,
                        Pattern pattern) {
  const u32 grain = w.block->launch->program->shared_grain;
  const bool updated = w.block->last_update >= w.block->epoch;
  if (kind != AccessKind::kAtomic && !updated) {
    switch (bytes >> grain) {  // an access lies on a multiple of its size
      case 1:
        if (check_together<1>(w, mask, kind, offsets, pattern)) return;
        break;
      case 2:
        if (check_together<2>(w, mask, kind, offsets, pattern)) return;
        break;
      case 4:
        if (check_together<4>(w, mask, kind, offsets, pattern)) return;
        break;
      case 8:
        if (check_together<8>(w, mask, kind, offsets, pattern)) return;
        break;
      case 16:
        if (check_together<16>(w, mask, kind, offsets, pattern)) return;
        break;
      default:
        break;
    }
  }
  check_in_order(w, i, mask, bytes, kind, offsets);
}

void mark_written(Warp& w, int lane, u32 offset, u32 bytes) {
  const u32 grain = w.block->launch->program->shared_grain, mine = Accessor(w).mine(static_cast<u32>(lane));
  for (u32 at = offset >> grain; at <= (offset + bytes - 1) >> grain; ++at) w.block->written[at] = mine;
}

void check_global_races(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* addresses,
                        bool contiguous) {
  const Launch& launch = *w.block->launch;
  if (kind == AccessKind::kAtomic || i.relaxed || launch.synchronised.load(std::memory_order_relaxed)) return;
  const u64 tag = tag_of_launch(launch.id), me = number_of_block(w.block->linear);
  while (mask != 0) {  // runs of lanes whose bytes follow each other
    const int l = std::countr_zero(mask);
    int end = l + 1;
    while (end < 32
           && (contiguous || ((mask >> end & 1) != 0 && addresses[end] == addresses[end - 1] + bytes)))
      ++end;
    mask &= end == 32 ? 0 : kFullMask << end;
    if (memory::contains(addresses[l], u64{bytes} * static_cast<u64>(end - l)))
      GlobalAccess{w, i, kind, addresses[l] - memory::ranges.start, bytes, l, tag, me}.check(end - l);
    while (mask != 0 && end < 32 && addresses[end] == addresses[end - 1]) mask &= ~(1u << end++);
  }
}

void begin_global_races(u32 launch) {
  if (launch % (kLaunchTags - 1) != 0 || memory::ranges.cells == nullptr) return;
  madvise(memory::ranges.cells, memory::kReservedBytes * sizeof(u64), MADV_DONTNEED);
  madvise(memory::ranges.sectors, memory::kReservedBytes / 32 * sizeof(u64), MADV_DONTNEED);
}

}  // namespace simgpu
