#include "exec/access.h"

#include <algorithm>

#include "exec/races.h"
#include "settings.h"

namespace simgpu {

std::string hex(u64 value) {
  char text[20];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

namespace {

const char* verb(AccessKind kind) {
  return kind == AccessKind::kRead ? "reads" : kind == AccessKind::kWrite ? "writes" : "atomically updates";
}

void check_aligned(Warp& w, const Insn& i, u32 mask, u32 bytes, const u64* addresses, const char* space) {
  bytes &= ~bytes + 1;  // part of a cp.async's 16 bytes may be any number
  u64 low_bits = 0;
  for (int l = 0; l < 32; ++l) low_bits |= (mask >> l & 1) != 0 ? addresses[l] : 0;
  if ((low_bits & (bytes - 1)) == 0 || bytes == 1) return;
  for_lanes(mask, [&](int l) {
    if (addresses[l] % bytes == 0) return;
    const u64 address = addresses[l];
    const bool global = memory::contains(address, 1), shared = space == std::string_view("shared");
    report(w, i, l, FaultKind::kMisaligned,
           std::to_string(bytes) + "-byte access to " + space + " address " + hex(address)
               + ", which is not a multiple of " + std::to_string(bytes)
               + (global   ? ": " + memory::describe(address)
                  : shared ? ": " + describe_shared(w, static_cast<u32>(address))
                           : ""));
  });
}

// Whether lanes first to first + n - 1 follow each other in memory, or all have one address.
bool follow(const u64* addresses, u32 first, u32 n, u32 bytes) {
  u64 wrong = 0;
  for (u32 l = 0; l < n; ++l) wrong |= addresses[first + l] ^ (addresses[first] + u64{l} * bytes);
  return wrong == 0;
}
bool coincide(const u64* addresses, u32 first, u32 n) {
  u64 wrong = 0;
  for (u32 l = 0; l < n; ++l) wrong |= addresses[first + l] ^ addresses[first];
  return wrong == 0;
}

// --- global memory ---

[[noreturn]] void report_global(Warp& w, const Insn& i, int l, u64 address, u32 bytes, AccessKind kind) {
  const std::string what =
      std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes of global memory at " + hex(address);
  if (!memory::contains(address, bytes))
    report(w, i, l, FaultKind::kOutOfBounds, what + ": not device memory");
  const u8* state = memory::shadow(address);
  for (u32 b = 0; b < bytes; ++b) {
    if (state[b] == kFreed)
      report(w, i, l, FaultKind::kUseAfterFree, what + ": " + memory::describe(address + b));
    if (state[b] == kUnallocated && memory::is_freed(address + b))
      report(w, i, l, FaultKind::kUseAfterFree, what + ": " + memory::describe(address + b));
    if (state[b] == kUnallocated)
      report(w, i, l, FaultKind::kOutOfBounds, what + ": " + memory::describe(address + b));
  }
  report(w, i, l, FaultKind::kUninitialisedRead,
         what + ", which nothing has written: " + memory::describe(address));
}

// What shadow bytes differ in from kInitialised, gathered over many.
struct States {
  u64 changed = 0;      // 0: all are kInitialised
  u64 unallocated = 0;  // 0: all are kInitialised or kUninitialised
  template <u32 kBytes>
  void add(const u8* state) {
    constexpr u64 kEight = 0x0101010101010101u * kInitialised;
    if constexpr (kBytes == 16) {
      add<8>(state);
      add<8>(state + 8);
    } else {
      u64 word = kEight;
      std::memcpy(&word, state, kBytes);
      const u64 difference = word ^ kEight;  // 3 of kUninitialised, of all others one bit
      changed |= difference;
      unallocated |= (difference ^ difference >> 1) & 0x0101010101010101u;
    }
  }
  void add_range(const u8* state, u64 n) {
    for (; n >= 8; n -= 8, state += 8) add<8>(state);
    for (; n > 0; --n, ++state) add<1>(state);
  }
};
static_assert((kUninitialised ^ kInitialised) == 3 && (kUnallocated ^ kInitialised) == 2
              && (kFreed ^ kInitialised) == 1 && (kPending ^ kInitialised) == 6);

// f(std::integral_constant) for a size that has an instance of its own; false: another size.
template <class F>
bool with_size(u32 bytes, F&& f) {
  switch (bytes) {
    case 1:
      return f(std::integral_constant<u32, 1>()), true;
    case 2:
      return f(std::integral_constant<u32, 2>()), true;
    case 4:
      return f(std::integral_constant<u32, 4>()), true;
    case 8:
      return f(std::integral_constant<u32, 8>()), true;
    case 16:
      return f(std::integral_constant<u32, 16>()), true;
    default:
      return false;
  }
}
// Of the lanes of the mask, whose shadow bytes start at states[l].
States states_of_lanes(u32 mask, u32 bytes, u8* const* states) {
  States all;
  const bool known = with_size(
      bytes, [&](auto size) { for_lanes(mask, [&](int l) { all.add<decltype(size)::value>(states[l]); }); });
  if (!known) for_lanes(mask, [&](int l) { all.add_range(states[l], bytes); });
  return all;
}
void initialise_lanes(u32 mask, u32 bytes, u8* const* states) {
  const bool known = with_size(
      bytes, [&](auto size) { for_lanes(mask, [&](int l) { std::memset(states[l], kInitialised, size); }); });
  if (!known) for_lanes(mask, [&](int l) { std::memset(states[l], kInitialised, bytes); });
}

// One lane's access that is not simply allowed.
void check_lane(Warp& w, const Insn& i, int l, u64 address, u32 bytes, AccessKind kind) {
  if (!memory::contains(address, bytes)) {
    if (memory::is_registered(address, bytes)) return;
    report_global(w, i, l, address, bytes, kind);
  }
  u8* state = memory::shadow(address);
  const bool reads = kind != AccessKind::kWrite && settings().check_initialised;
  for (u32 b = 0; b < bytes; ++b) {
    if (state[b] != kInitialised && (state[b] != kUninitialised || reads))
      report_global(w, i, l, address, bytes, kind);
  }
  if (kind == AccessKind::kWrite) std::memset(state, kInitialised, bytes);
}

void check_states(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* addresses, u64 low,
                  u64 high, bool contiguous) {
  if (memory::contains(low, high - low)) {
    u8* states[32];
    States found;
    if (contiguous) {
      found.add_range(memory::shadow(low), high - low);
    } else {
      for (int l = 0; l < 32; ++l) states[l] = memory::shadow(addresses[l]);
      found = states_of_lanes(mask, bytes, states);
    }
    if (found.changed == 0) return;
    if (found.unallocated == 0) {
      if (kind == AccessKind::kWrite)
        return contiguous ? static_cast<void>(std::memset(memory::shadow(low), kInitialised, high - low))
                          : initialise_lanes(mask, bytes, states);
      if (!settings().check_initialised) return;
    }
  }
  for_lanes(mask, [&](int l) { check_lane(w, i, l, addresses[l], bytes, kind); });
}

// Memory of another device must have been opened to the one that the kernel runs on.
void check_reachable(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* addresses) {
  const int device = w.block->launch->config.device;
  for_lanes(mask, [&](int l) {
    const u64 address = addresses[l];
    if (!memory::contains(address, bytes) || memory::reachable(address, device)) return;
    const auto a = memory::nearest(address);
    report(
        w, i, l, FaultKind::kNoPeerAccess,
        std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes of global memory at " + hex(address)
            + ": " + memory::describe(address) + ", of device " + std::to_string(a ? a->device : -1)
            + ", to which device " + std::to_string(device) + " has no access ("
            + (a && a->kind == MemoryKind::kPool ? "cudaMemPoolSetAccess)" : "cudaDeviceEnablePeerAccess)"));
  });
}

void count_global(Work& c, u32 lanes, u32 bytes, u64 sectors, AccessKind kind) {
  if (kind == AccessKind::kRead) {
    ++c.global_load_requests, c.global_load_bytes += u64{lanes} * bytes, c.global_load_sectors += sectors;
  } else {
    ++c.global_store_requests, c.global_store_bytes += u64{lanes} * bytes, c.global_store_sectors += sectors;
  }
}
void count_global(Work& c, u32 mask, const u64* addresses, u32 bytes, u64 low, u64 high, AccessKind kind) {
  const u32 lanes = static_cast<u32>(std::popcount(mask));
  u64 sectors;
  if (high - low <= u64{lanes} * bytes) {  // no gaps
    sectors = ((high - 1) >> 5) - (low >> 5) + 1;
  } else {
    u64 ids[64];
    u32 n = 0;
    for_lanes(mask, [&](int l) {
      for (u64 id = addresses[l] >> 5; id <= (addresses[l] + bytes - 1) >> 5; ++id) {
        if (n == 0 || ids[n - 1] != id) ids[n++] = id;
      }
    });
    if (!std::is_sorted(ids, ids + n)) std::sort(ids, ids + n);
    sectors = static_cast<u64>(std::unique(ids, ids + n) - ids);
  }
  count_global(c, lanes, bytes, sectors, kind);
}

// All lanes, one behind the other, and no checker that wants to see them: only the first address is looked
// at.
bool resolve_run(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, Access& access) {
  if (i.space != Space::kGlobal || i.address_bytes != 8 || mask != kFullMask) return false;
  const u64* base = w.lanes<u64>(i.op[1]);
  const Settings& s = settings();
  if (s.check_memory || s.check_global_races || !follow(base, 0, 32, bytes)) return false;
  const u64 low = base[0] + static_cast<u64>(i.imm);
  for (u32 l = 0; l < 32; ++l) access.at[l] = reinterpret_cast<u8*>(low + u64{l} * bytes);
  access.contiguous = true;
  count_global(counts->work[i.number], 32, bytes, ((low + u64{32} * bytes - 1) >> 5) - (low >> 5) + 1, kind);
  return true;
}

void resolve_global(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* addresses,
                    Access& access) {
  u64 low = ~u64{0}, high = 0;
  access.contiguous = mask == kFullMask && follow(addresses, 0, 32, bytes);
  if (access.contiguous) low = addresses[0], high = low + u64{32} * bytes;
  for (int l = 0; l < 32; ++l) access.at[l] = reinterpret_cast<u8*>(addresses[l]);
  for_lanes(access.contiguous ? 0 : mask, [&](int l) {
    low = std::min(low, addresses[l]);
    high = std::max(high, addresses[l] + bytes);
  });
  if (settings().check_memory) {
    check_aligned(w, i, mask, std::min(bytes, 16u), addresses, "global");
    check_states(w, i, mask, bytes, kind, addresses, low, high, access.contiguous);
    if (settings().devices > 1) check_reachable(w, i, mask, bytes, kind, addresses);
  }
  if (settings().check_global_races)
    check_global_races(w, i, mask, bytes, kind, addresses, access.contiguous);
  if (i.space == Space::kConst) return;  // these come from a cache of their own
  count_global(counts->work[i.number], mask, addresses, bytes, low, high, kind);
}

// --- shared memory ---

// Wavefronts: the most distinct words that fall on one of the 32 banks. Wider accesses go in halves or
// quarters of the warp, and then take 2 or 4 banks as one.
void count_shared(Work& c, u32 mask, const u64* offsets, u32 bytes, Pattern pattern) {
  const u32 lanes_together = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  ++c.shared_requests;
  if (pattern != Pattern::kOther) {
    c.shared_wavefronts += 32 / lanes_together;
    c.shared_ideal_wavefronts += 32 / lanes_together;
    return;
  }
  const int shift = std::countr_zero(std::bit_ceil(std::max(bytes, 4u)));
  const auto word = [&](int l) { return static_cast<u32>(offsets[l] >> shift); };
  for (u32 first = 0; first < 32; first += lanes_together) {
    u32 left = mask & kFullMask >> (32 - lanes_together) << first;
    if (left == 0) continue;
    ++c.shared_ideal_wavefronts;
    if (std::popcount(left) == static_cast<int>(lanes_together) && coincide(offsets, first, lanes_together)) {
      ++c.shared_wavefronts;
      continue;
    }
    u32 places = 0;
    for_lanes(left, [&](int l) { places |= 1u << word(l) % lanes_together; });
    if (std::popcount(places) == std::popcount(left)) {
      ++c.shared_wavefronts;
      continue;
    }
    while (left != 0) {  // each place serves one word at a time
      u32 served[32], waiting = 0;
      for_lanes(left, [&](int l) { served[word(l) % lanes_together] = word(l); });
      for_lanes(left, [&](int l) { waiting |= u32{served[word(l) % lanes_together] != word(l)} << l; });
      left = waiting;
      ++c.shared_wavefronts;
    }
  }
}

// Inside the block's shared memory, and aligned.
void check_shared_range(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets) {
  const Block& block = *w.block;
  const u64 size = u64{block.launch->program->shared_bytes} + block.launch->config.dynamic_shared_bytes,
            room = block.shared.size();
  u64 furthest = 0;
  for (int l = 0; l < 32; ++l) furthest = std::max(furthest, (mask >> l & 1) != 0 ? offsets[l] : 0);
  for_lanes(furthest < size && furthest + bytes <= size ? 0 : mask, [&](int l) {
    const bool reserved = offsets[l] >= room - kReservedShared && offsets[l] + bytes <= room;
    if (reserved || (offsets[l] + bytes <= size && offsets[l] < size)) return;
    report(w, i, l, FaultKind::kOutOfBounds,
           std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes of shared memory at offset "
               + std::to_string(static_cast<i64>(offsets[l])) + "; the block has " + std::to_string(size));
  });
  if (settings().check_memory) check_aligned(w, i, mask, std::min(bytes, 16u), offsets, "shared");
}

void check_shared_states(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets,
                         Pattern pattern) {
  u8* const state = w.block->shared_state.data();
  u8* states[32];
  States found;
  if (pattern == Pattern::kContiguous) {
    found.add_range(state + offsets[0], u64{32} * bytes);
  } else {
    for (int l = 0; l < 32; ++l) states[l] = state + offsets[l];
    found = states_of_lanes(mask, bytes, states);
  }
  if (found.changed == 0) return;
  if (found.unallocated == 0) {
    if (kind == AccessKind::kWrite)
      return pattern == Pattern::kContiguous
                 ? static_cast<void>(std::memset(state + offsets[0], kInitialised, size_t{32} * bytes))
                 : initialise_lanes(mask, bytes, states);
    if (!settings().check_initialised) return;
  }
  for_lanes(mask, [&](int l) {
    for (u64 b = offsets[l]; b < offsets[l] + bytes; ++b) {
      if (state[b] == kPending)
        report(w, i, l, FaultKind::kMissingAsyncWait,
               std::string(verb(kind)) + " " + describe_shared(w, static_cast<u32>(b))
                   + ", to which a cp.async writes that has not been waited for");
      if (kind != AccessKind::kWrite && state[b] != kInitialised && settings().check_initialised)
        report(w, i, l, FaultKind::kUninitialisedRead,
               "reads " + describe_shared(w, static_cast<u32>(b)) + ", which nothing has written");
    }
    if (kind == AccessKind::kWrite) std::memset(state + offsets[l], kInitialised, bytes);
  });
}

Pattern pattern_of(u32 mask, u32 bytes, const u64* offsets) {
  if (mask != kFullMask) return Pattern::kOther;
  return follow(offsets, 0, 32, bytes) ? Pattern::kContiguous
         : coincide(offsets, 0, 32)    ? Pattern::kSame
                                       : Pattern::kOther;
}

void resolve_shared(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets,
                    Access& access) {
  Block& block = *w.block;
  for (int l = 0; l < 32; ++l) access.at[l] = reinterpret_cast<u8*>(block.shared.data()) + offsets[l];
  check_shared_range(w, i, mask, bytes, kind, offsets);
  const Pattern pattern = pattern_of(mask, bytes, offsets);
  access.contiguous = pattern == Pattern::kContiguous;
  access.same = pattern == Pattern::kSame;
  if (settings().check_memory) check_shared_states(w, i, mask, bytes, kind, offsets, pattern);
  if (settings().check_shared_races && !i.relaxed)
    check_shared_races(w, i, mask, bytes, kind, offsets, pattern);
  count_shared(counts->work[i.number], mask, offsets, bytes, pattern);
}

// --- the rest ---

void resolve_local(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets,
                   Access& access) {
  const u64 stack = w.local.size() / 32;
  for_lanes(mask, [&](int l) {
    if (offsets[l] + bytes > stack || offsets[l] >= stack) {
      report(w, i, l, FaultKind::kOutOfBounds,
             std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes of local memory at offset "
                 + std::to_string(static_cast<i64>(offsets[l])) + "; the thread has "
                 + std::to_string(stack));
    }
    access.at[l] = reinterpret_cast<u8*>(w.local.data()) + static_cast<u64>(l) * stack + offsets[l];
  });
  if (settings().check_memory) check_aligned(w, i, mask, std::min(bytes, 16u), offsets, "local");
}
void resolve_params(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets,
                    Access& access) {
  const std::span<const u8> params = w.block->launch->params;
  if (kind == AccessKind::kRead && coincide(offsets, 0, 32) && offsets[0] + bytes <= params.size()) {
    std::fill_n(access.at, 32, const_cast<u8*>(params.data()) + offsets[0]);
    access.same = true;
    return;
  }
  for_lanes(mask, [&](int l) {
    if (kind != AccessKind::kRead || offsets[l] + bytes > params.size()) {
      report(w, i, l, FaultKind::kOutOfBounds,
             std::string(verb(kind)) + " kernel parameters at offset " + std::to_string(offsets[l]) + " of "
                 + std::to_string(params.size()) + " bytes");
    }
    access.at[l] = const_cast<u8*>(params.data()) + offsets[l];
  });
}

}  // namespace

void lane_addresses(Warp& w, const Insn& i, u64* addresses) {
  const u64 offset = static_cast<u64>(i.imm);
  if (i.address_bytes == 4) {
    const u32* base = w.lanes<u32>(i.op[1]);
    for (int l = 0; l < 32; ++l) addresses[l] = u32(base[l] + static_cast<u32>(offset));
  } else {
    const u64* base = w.lanes<u64>(i.op[1]);
    for (int l = 0; l < 32; ++l) addresses[l] = base[l] + offset;
  }
}

void resolve_access(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, Access& access) {
  if (i.space == Space::kFrame) {
    for_lanes(mask,
              [&](int l) { access.at[l] = reinterpret_cast<u8*>(w.file) + i.op[1] + l * i.op[2] + i.imm; });
    return;
  }
  if (resolve_run(w, i, mask, bytes, kind, access)) return;
  u64 addresses[32];
  lane_addresses(w, i, addresses);
  switch (i.space) {
    case Space::kGlobal:
    case Space::kConst:
      return resolve_global(w, i, mask, bytes, kind, addresses, access);
    case Space::kShared:
      return resolve_shared(w, i, mask, bytes, kind, addresses, access);
    case Space::kLocal:
      return resolve_local(w, i, mask, bytes, kind, addresses, access);
    case Space::kParam:
      return resolve_params(w, i, mask, bytes, kind, addresses, access);
    default:
      break;
  }
  while (mask != 0) {  // generic: the lanes of one window at a time
    const u64 window = addresses[std::countr_zero(mask)] & kWindowMask;
    u32 same = 0;
    for_lanes(mask, [&](int l) { same |= u32{(addresses[l] & kWindowMask) == window} << l; });
    u64 offsets[32];
    for (int l = 0; l < 32; ++l) offsets[l] = addresses[l] & ~kWindowMask;
    if (window == kSharedWindow)
      resolve_shared(w, i, same, bytes, kind, offsets, access);
    else if (window == kLocalWindow)
      resolve_local(w, i, same, bytes, kind, offsets, access);
    else if (window == kParamWindow)
      resolve_params(w, i, same, bytes, kind, offsets, access);
    else
      resolve_global(w, i, same, bytes, kind, addresses, access);
    mask &= ~same;
  }
}

std::string describe_shared(const Warp& w, u32 offset) {
  const Program& program = *w.block->launch->program;
  std::string text = "shared memory at offset " + std::to_string(offset);
  if (offset >= program.shared_bytes && w.block->launch->config.dynamic_shared_bytes > 0)
    return text + " (byte " + std::to_string(offset - program.shared_bytes) + " of the dynamic)";
  const std::string* name = nullptr;
  u32 start = 0;
  for (const auto& [variable, at] : program.shared_offsets) {
    if (at <= offset && (name == nullptr || at >= start)) name = &variable, start = at;
  }
  if (name == nullptr) return text;
  return text + " (byte " + std::to_string(offset - start) + " of " + demangled(*name) + ")";
}

// For the race detector the copy writes when it is issued, and again when it has been waited for.
void begin_copies(Warp& w, const Insn& i, u32 mask, u32 bytes, const u64* offsets) {
  check_shared_range(w, i, mask, bytes, AccessKind::kWrite, offsets);
  const Pattern pattern = pattern_of(mask, bytes, offsets);
  count_shared(counts->work[i.number], mask, offsets, bytes, pattern);
  if (settings().check_shared_races)
    check_shared_races(w, i, mask, bytes, AccessKind::kWrite, offsets, pattern);
  if (pattern == Pattern::kContiguous)
    std::memset(&w.block->shared_state[offsets[0]], kPending, size_t{32} * bytes);
  else
    for_lanes(mask, [&](int l) { std::memset(&w.block->shared_state[offsets[l]], kPending, bytes); });
}

// All groups of the lanes of the mask but the newest `keep_groups` arrive.
void complete_copies(Warp& w, u32 mask, u32 keep_groups) {
  Block& block = *w.block;
  const bool races = settings().check_shared_races;
  size_t left = 0;
  for (auto& slot : w.copies) {
    AsyncCopy& copy = *slot;
    u32 arrived = 0;
    for_lanes(copy.mask & mask,
              [&](int l) { arrived |= u32{copy.group + keep_groups < w.committed[l]} << l; });
    for_lanes(arrived, [&](int l) {
      std::memcpy(block.shared.data() + copy.shared[l], copy.data[l], copy.bytes);
      std::memset(&block.shared_state[copy.shared[l]], kInitialised, copy.bytes);
      if (races) mark_written(w, l, copy.shared[l], copy.bytes);
    });
    copy.mask &= ~arrived;
    if (copy.mask == 0)
      w.spare_copies.push_back(std::move(slot));
    else if (auto& place = w.copies[left++]; &place != &slot)
      place = std::move(slot);
  }
  w.copies.resize(left);
}

}  // namespace simgpu
