#include "exec/access.h"

#include <algorithm>

#include "exec/races.h"
#include "settings.h"

namespace simgpu {
namespace {

const char* verb(AccessKind kind) {
  return kind == AccessKind::kRead ? "reads" : kind == AccessKind::kWrite ? "writes" : "atomically updates";
}
std::string hex(u64 value) {
  char text[20];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

void check_aligned(Warp& w, const Insn& i, u32 mask, u32 bytes, const u64* addresses, const char* space) {
  bytes &= ~bytes + 1;  // part of a cp.async's 16 bytes may be any number
  u64 low_bits = 0;
  for (int l = 0; l < 32; ++l) low_bits |= (mask >> l & 1) != 0 ? addresses[l] : 0;
  if ((low_bits & (bytes - 1)) == 0 || bytes == 1) return;
  for_lanes(mask, [&](int l) {
    if (addresses[l] % bytes == 0) return;
    report(w, i, l, FaultKind::kMisaligned,
           std::to_string(bytes) + "-byte access to " + space + " address " + hex(addresses[l])
               + ", which is not a multiple of " + std::to_string(bytes));
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
    if (state[b] == kUnallocated)
      report(w, i, l, FaultKind::kOutOfBounds, what + ": " + memory::describe(address + b));
  }
  report(w, i, l, FaultKind::kUninitialisedRead,
         what + ", which nothing has written: " + memory::describe(address));
}

bool all_initialised(const u8* state, u64 n) {
  constexpr u32 kFour = 0x01010101u * kInitialised;
  if (n == 4 || n == 16) {
    u32 words[4] = {kFour, kFour, kFour, kFour};
    std::memcpy(words, state, n);
    return ((words[0] ^ kFour) | (words[1] ^ kFour) | (words[2] ^ kFour) | (words[3] ^ kFour)) == 0;
  }
  u8 wrong = 0;
  for (u64 b = 0; b < n; ++b) wrong |= state[b] ^ static_cast<u8>(kInitialised);
  return wrong == 0;
}

void check_lane(Warp& w, const Insn& i, int l, u64 address, u32 bytes, AccessKind kind) {
  if (!memory::contains(address, bytes)) report_global(w, i, l, address, bytes, kind);
  u8* state = memory::shadow(address);
  const bool reads = kind != AccessKind::kWrite && settings().check_initialised;
  for (u32 b = 0; b < bytes; ++b) {
    if (state[b] != kInitialised && (state[b] != kUninitialised || reads))
      report_global(w, i, l, address, bytes, kind);
  }
  if (kind == AccessKind::kWrite) std::memset(state, kInitialised, bytes);
}

void count_global(u32 mask, const u64* addresses, u32 bytes, u64 low, u64 high, AccessKind kind) {
  Counters& c = counts->counters;
  const u32 lanes = static_cast<u32>(std::popcount(mask));
  u64 sectors;
  if (high - low <= u64{lanes} * bytes) {  // no gaps
    sectors = ((high - 1) >> 5) - (low >> 5) + 1;
  } else {
    u64 ids[64];
    u32 n = 0;
    for_lanes(mask, [&](int l) {
      ids[n++] = addresses[l] >> 5;
      if (((addresses[l] + bytes - 1) >> 5) != ids[n - 1]) ids[n] = ids[n - 1] + 1, ++n;
    });
    std::sort(ids, ids + n);
    sectors = static_cast<u64>(std::unique(ids, ids + n) - ids);
  }
  if (kind == AccessKind::kRead) {
    ++c.global_load_requests, c.global_load_bytes += u64{lanes} * bytes, c.global_load_sectors += sectors;
  } else {
    ++c.global_store_requests, c.global_store_bytes += u64{lanes} * bytes, c.global_store_sectors += sectors;
  }
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
    const bool close = high - low <= 4096 && memory::contains(low, high - low);
    if (!close || !all_initialised(memory::shadow(low), high - low)) {
      for_lanes(mask, [&](int l) { check_lane(w, i, l, addresses[l], bytes, kind); });
    }
  }
  if (settings().check_global_races) check_global_races(w, i, mask, bytes, kind, addresses);
  count_global(mask, addresses, bytes, low, high, kind);
}

// --- shared memory ---

// Wavefronts: the most distinct 4-byte words that fall on one of the 32 banks. Wider accesses go in halves or
// quarters.
void count_shared(u32 mask, const u64* offsets, u32 bytes) {
  Counters& c = counts->counters;
  const u32 lanes_together = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  ++c.shared_requests;
  for (u32 first = 0; first < 32; first += lanes_together) {
    const u32 group = lanes_together == 32 ? mask : mask >> first & ((1u << lanes_together) - 1);
    if (group == 0) continue;
    const bool whole = group == (lanes_together == 32 ? kFullMask : (1u << lanes_together) - 1);
    if (whole
        && (follow(offsets, first, lanes_together, std::max(bytes, 4u))
            || coincide(offsets, first, lanes_together))) {
      ++c.shared_wavefronts;
      ++c.shared_ideal_wavefronts;
      continue;
    }
    u32 most = 1, used[32] = {};
    u64 words[32][8];
    for_lanes(group, [&](int l) {
      for (u32 b = 0; b < std::max(bytes, 4u); b += 4) {
        const u64 word = offsets[first + l] / 4 + b / 4;
        const u32 bank = word % 32;
        bool known = false;
        for (u32 k = 0; k < std::min(used[bank], 8u); ++k) known = known || words[bank][k] == word;
        if (known) continue;
        if (used[bank] < 8) words[bank][used[bank]] = word;
        most = std::max(most, ++used[bank]);
      }
    });
    c.shared_wavefronts += most;
    ++c.shared_ideal_wavefronts;
  }
}

void resolve_shared(Warp& w, const Insn& i, u32 mask, u32 bytes, AccessKind kind, const u64* offsets,
                    Access& access) {
  Block& block = *w.block;
  const u64 size = u64{block.launch->program->shared_bytes} + block.launch->config.dynamic_shared_bytes,
            room = block.shared.size();
  u64 furthest = 0;
  for (int l = 0; l < 32; ++l) {
    access.at[l] = reinterpret_cast<u8*>(block.shared.data()) + offsets[l];
    furthest = std::max(furthest, (mask >> l & 1) != 0 ? offsets[l] : 0);
  }
  for_lanes(furthest < size && furthest + bytes <= size ? 0 : mask, [&](int l) {
    const bool reserved = offsets[l] >= room - kReservedShared && offsets[l] + bytes <= room;
    if (reserved || (offsets[l] + bytes <= size && offsets[l] < size)) return;
    report(w, i, l, FaultKind::kOutOfBounds,
           std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes of shared memory at offset "
               + std::to_string(static_cast<i64>(offsets[l])) + "; the block has " + std::to_string(size));
  });
  if (settings().check_memory) {
    check_aligned(w, i, mask, std::min(bytes, 16u), offsets, "shared");
    for_lanes(mask, [&](int l) {
      u8* state = &block.shared_state[offsets[l]];
      if (all_initialised(state, bytes)) return;
      for (u32 b = 0; b < bytes; ++b) {
        if (state[b] == kPending) {
          report(w, i, l, FaultKind::kMissingAsyncWait,
                 std::string(verb(kind)) + " shared memory at offset " + std::to_string(offsets[l] + b)
                     + ", to which a cp.async writes that has not been waited for");
        }
        if (kind != AccessKind::kWrite && state[b] != kInitialised && settings().check_initialised) {
          report(w, i, l, FaultKind::kUninitialisedRead,
                 "reads shared memory at offset " + std::to_string(offsets[l] + b)
                     + ", which nothing has written");
        }
      }
      if (kind == AccessKind::kWrite) std::memset(state, kInitialised, bytes);
    });
  }
  if (settings().check_shared_races && !i.relaxed) check_shared_races(w, i, mask, bytes, kind, offsets);
  count_shared(mask, offsets, bytes);
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

void mark_pending(Warp& w, u32 shared, u32 bytes) {
  std::memset(&w.block->shared_state[shared], kPending, bytes);
}

// All groups of the lanes of the mask but the newest `keep_groups` arrive.
void complete_copies(Warp& w, u32 mask, u32 keep_groups) {
  std::erase_if(w.copies, [&](const AsyncCopy& copy) {
    if ((mask >> copy.lane & 1) == 0 || copy.group + keep_groups >= w.committed[copy.lane]) return false;
    std::memcpy(w.block->shared.data() + copy.shared, copy.data, copy.bytes);
    std::memset(&w.block->shared_state[copy.shared], kInitialised, copy.bytes);
    mark_written(w, copy.lane, copy.shared, copy.bytes);
    return true;
  });
}

}  // namespace simgpu
