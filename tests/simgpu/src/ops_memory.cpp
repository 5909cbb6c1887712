// Loads, stores, atomics and cp.async, with the checks of every address.
#include <atomic>

#include "warp.h"

namespace simgpu {
namespace {

std::string text_of(const char* what, u32 bytes) { return std::string(what) + " of " + std::to_string(bytes) + " bytes"; }

// Returns the host pointer for a checked global access.
u8* global_access(Warp& w, const Insn& i, int lane, u64 address, u32 bytes, bool read, bool write) {
  if (address % bytes) report(w, i, lane, "misaligned global " + text_of(write ? "write" : "read", bytes) + ": " + describe_address(address));
  if (!in_arena(address, bytes)) report(w, i, lane, "global " + text_of(write ? "write" : "read", bytes) + " out of bounds: " + describe_address(address));
  u8* shadow = shadow_of(address);
  for (u32 b = 0; b < bytes; ++b) {
    if (shadow[b] == kUnallocated) report(w, i, lane, "global " + text_of(write ? "write" : "read", bytes) + " out of bounds: " + describe_address(address + b));
    if (shadow[b] == kFreed) report(w, i, lane, "global " + text_of(write ? "write" : "read", bytes) + " after free: " + describe_address(address));
    if (read && shadow[b] == kUninitialised) report(w, i, lane, "read of uninitialised global memory: " + describe_address(address + b));
  }
  if (write) memset(shadow, kInitialised, bytes);
  return reinterpret_cast<u8*>(address);
}

void shared_race_check(Warp& w, const Insn& i, int lane, u64 address, u32 bytes, bool write) {
  Block& block = *w.block;
  const u16 self = static_cast<u16>(w.index * 32 + lane);
  for (u32 b = 0; b < bytes; ++b) {
    SharedCell& c = block.cells[address + b];
    const bool written = c.write_epoch == block.epoch && c.writer != self;
    if (written && (c.writer / 32 != w.index || (!write && c.write_sync == w.sync))) {
      report(w, i, lane, "shared-memory race: byte " + std::to_string(address + b) + " was written by thread " + std::to_string(c.writer) + " with no barrier since");
    }
    constexpr u16 kMany = 0xffff, kManyOfWarp = 0x8000;
    if (write) {
      const bool other_warp = c.reader == kMany || (c.reader & 0x7fff) / (c.reader & kManyOfWarp ? 1 : 32) != w.index;
      if (c.read_epoch == block.epoch && c.reader != self && (other_warp || c.read_sync == w.sync)) {
        report(w, i, lane, "shared-memory race: byte " + std::to_string(address + b) + " was read by another thread with no barrier since");
      }
      c.write_epoch = block.epoch, c.write_sync = w.sync, c.writer = self;
    } else if (c.read_epoch != block.epoch) {
      c.read_epoch = block.epoch, c.read_sync = w.sync, c.reader = self;
    } else if (c.reader != self) {
      const u32 reader_warp = c.reader & kManyOfWarp ? c.reader & 0x7fff : c.reader / 32;
      c.reader = c.reader != kMany && reader_warp == w.index ? static_cast<u16>(kManyOfWarp | w.index) : kMany;
      c.read_sync = w.sync;
    } else {
      c.read_sync = w.sync;
    }
  }
}

u8* shared_access(Warp& w, const Insn& i, int lane, u64 address, u32 bytes, bool read, bool write, bool atomic = false) {
  Block& block = *w.block;
  const char* what = write ? "write" : "read";
  if (address % bytes) report(w, i, lane, "misaligned shared " + text_of(what, bytes) + " at byte " + std::to_string(address));
  if (address + bytes > block.shared.size() || address + bytes < address) {
    report(w, i, lane, "shared " + text_of(what, bytes) + " out of bounds: byte " + std::to_string(address) + " of " + std::to_string(block.shared.size()));
  }
  for (u32 b = 0; b < bytes && read; ++b) {
    const u8 state = block.shared_state[address + b];
    if (state == kPending) report(w, i, lane, "read of shared byte " + std::to_string(address + b) + " before cp.async.wait");
    if (state != kInitialised) report(w, i, lane, "read of uninitialised shared memory at byte " + std::to_string(address + b));
  }
  if (!atomic) shared_race_check(w, i, lane, address, bytes, write);
  if (write) memset(&block.shared_state[address], kInitialised, bytes);
  return &block.shared[address];
}

u8* access(Warp& w, const Insn& i, int lane, u64 address, u32 bytes, bool read, bool write, bool atomic = false) {
  if (i.space == Space::kShared) return shared_access(w, i, lane, address, bytes, read, write, atomic);
  if (i.space == Space::kGeneric && address >= kSharedWindow) return shared_access(w, i, lane, address - kSharedWindow, bytes, read, write, atomic);
  return global_access(w, i, lane, address, bytes, read, write);
}

u64 sign_extend(u64 v, const Insn& i) {
  return i.is_signed ? u64(int64_t(v << (64 - 8 * i.bytes)) >> (64 - 8 * i.bytes)) : v;
}

void load(Warp& w, const Insn& i, u32 mask) {  // op[0..n-1] destinations, op[n] address
  const int n = i.mode;
  for (u32 m = mask; m; m &= m - 1) {
    const int l = std::countr_zero(m);
    const u8* p = access(w, i, l, read_any(w, i.op[n], l) + i.imm, i.bytes * n, true, false);
    u64 value[4] = {};
    for (int k = 0; k < n; ++k) memcpy(&value[k], p + k * i.bytes, i.bytes);
    for (int k = 0; k < n; ++k) write_any(w, i.op[k], l, sign_extend(value[k], i));
  }
}
void store(Warp& w, const Insn& i, u32 mask) {  // op[0] address, op[1..n] sources
  const int n = i.mode;
  for (u32 m = mask; m; m &= m - 1) {
    const int l = std::countr_zero(m);
    u8* p = access(w, i, l, read_any(w, i.op[0], l) + i.imm, i.bytes * n, false, true);
    for (int k = 0; k < n; ++k) {
      const u64 v = read_any(w, i.op[1 + k], l);
      memcpy(p + k * i.bytes, &v, i.bytes);
    }
  }
}
void load_param(Warp& w, const Insn& i, u32) {  // uniform: every lane reads the same bytes
  for (int k = 0; k < i.mode; ++k) {
    u64 v = 0;
    memcpy(&v, w.block->params + i.imm + k * i.bytes, i.bytes);
    v = sign_extend(v, i);
    for (int l = 0; l < 32; ++l) write_any(w, i.op[k], l, v);
  }
}

enum AtomicOp : u8 { kAdd, kMin, kMax, kAnd, kOr, kXor, kExch, kCas, kInc, kDec };
constexpr std::string_view kAtomicNames[] = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"};

template <class T>
T combine(AtomicOp op, T old, T b, T c) {
  if (op == kAdd) return static_cast<T>(old + b);
  if (op == kMin) return old < b ? old : b;
  if (op == kMax) return old > b ? old : b;
  if (op == kExch) return b;
  if (op == kCas) return old == b ? c : old;
  if (op == kInc) return old >= b ? T(0) : T(old + 1);
  if (op == kDec) return old == T(0) || old > b ? b : T(old - 1);
  if constexpr (std::is_integral_v<T>) {
    if (op == kAnd) return old & b;
    if (op == kOr) return old | b;
    if (op == kXor) return old ^ b;
  }
  return old;
}

template <class T>
void atomic(Warp& w, const Insn& i, u32 mask) {
  using Bits = std::conditional_t<sizeof(T) == 4, u32, u64>;
  const bool returns = i.is_signed;  // atom, not red
  const Operand* o = i.op + (returns ? 1 : 0);
  for (u32 m = mask; m; m &= m - 1) {
    const int l = std::countr_zero(m);
    auto* p = reinterpret_cast<Bits*>(access(w, i, l, read_any(w, o[0], l) + i.imm, sizeof(T), true, true, true));
    const T b = lanes<T>(w, o[1])[l], c = i.mode == kCas ? lanes<T>(w, o[2])[l] : T(0);
    std::atomic_ref<Bits> cell(*p);
    Bits old = cell.load(std::memory_order_relaxed);
    while (!cell.compare_exchange_weak(old, std::bit_cast<Bits>(combine(static_cast<AtomicOp>(i.mode), std::bit_cast<T>(old), b, c)))) {
    }
    if (returns) lanes<Bits>(w, i.op[0])[l] = old;
  }
}

bool select_atomic(Insn& insn, const Opcode& o) {
  insn.is_signed = o.part[0] == "atom";
  bool found = false;
  for (int k = 0; k < 10; ++k) {
    if (o.has(kAtomicNames[k])) insn.mode = static_cast<u8>(k), found = true;
  }
  const std::string_view t = o.type();
  if (t == "u32" || t == "b32") insn.run = atomic<u32>;
  if (t == "s32") insn.run = atomic<int32_t>;
  if (t == "u64" || t == "b64") insn.run = atomic<u64>;
  if (t == "s64") insn.run = atomic<int64_t>;
  if (t == "f32") insn.run = atomic<float>;
  if (t == "f64") insn.run = atomic<double>;
  return found && insn.run;
}

// cp.async reads its source at once but shows nothing in shared memory before the wait for its group.
void copy_async(Warp& w, const Insn& i, u32 mask) {
  for (u32 m = mask; m; m &= m - 1) {
    const int l = std::countr_zero(m);
    const u32 bytes = lanes<u32>(w, i.op[2])[l], given = i.count > 3 ? lanes<u32>(w, i.op[3])[l] : bytes;
    const u64 to = read_any(w, i.op[0], l), from = read_any(w, i.op[1], l) + i.imm;
    shared_access(w, i, l, to, bytes, false, true);
    AsyncCopy c;
    c.group = w.group[l], c.lane = l, c.shared = static_cast<u32>(to), c.bytes = static_cast<u8>(bytes);
    memset(c.data, 0, sizeof c.data);
    if (given) {
      const u8* source = global_access(w, i, l, from, bytes, given == bytes, false);
      memcpy(c.data, source, given);
    }
    memset(&w.block->shared_state[to], kPending, bytes);
    memset(&w.block->shared[to], 0xff, bytes);
    w.copies.push_back(c);
  }
}
void commit_group(Warp& w, const Insn&, u32 mask) {
  for (u32 m = mask; m; m &= m - 1) ++w.group[std::countr_zero(m)];
}
void wait_group(Warp& w, const Insn& i, u32 mask) {  // mode 1: wait_all
  size_t kept = 0;
  for (const AsyncCopy& c : w.copies) {
    const bool waits = mask >> c.lane & 1;
    const u32 allowed = i.mode ? 0 : lanes<u32>(w, i.op[0])[0];
    if (waits && (i.mode || c.group + allowed < w.group[c.lane])) {
      memcpy(&w.block->shared[c.shared], c.data, c.bytes);
      memset(&w.block->shared_state[c.shared], kInitialised, c.bytes);
    } else {
      w.copies[kept++] = c;
    }
  }
  w.copies.resize(kept);
}

// PTX ISA, "Warp-level matrix instructions: ldmatrix": lane 8i+r holds the address of row r of matrix i; lane l
// receives elements (l/4, 2*(l%4)) and the next one; .trans swaps row and column.
void load_matrix(Warp& w, const Insn& i, u32 mask) {
  if (mask != kFullMask) report(w, i, std::countr_zero(mask), "ldmatrix needs all 32 lanes");
  const int n = i.mode & 7;
  for (int k = 0; k < n; ++k) {
    u16 tile[8][8];
    for (int r = 0; r < 8; ++r) {
      const u64 address = read_any(w, i.op[n], k * 8 + r) + i.imm;
      memcpy(tile[r], access(w, i, k * 8 + r, address, 16, true, false), 16);
    }
    u32* d = lanes<u32>(w, i.op[k]);
    for (int l = 0; l < 32; ++l) {
      const int r = l / 4, c = 2 * (l % 4);
      d[l] = i.mode & 8 ? tile[c][r] | u32(tile[c + 1][r]) << 16 : tile[r][c] | u32(tile[r][c + 1]) << 16;
    }
  }
}

void nothing(Warp&, const Insn&, u32) {}

}  // namespace

bool select_memory(Insn& insn, const Opcode& o, size_t) {
  const std::string_view op = o.part[0];
  if (o.has("shared")) insn.space = Space::kShared;
  if (o.has("global")) insn.space = Space::kGlobal;
  if (op == "atom" || op == "red") return select_atomic(insn, o);
  if (op == "membar" || op == "fence" || op == "prefetch") return insn.run = nothing;
  if (op == "cp" && o.has("async")) {
    if (o.has("commit_group")) return insn.run = commit_group;
    if (o.has("wait_group")) return insn.run = wait_group;
    if (o.has("wait_all")) return insn.mode = 1, insn.run = wait_group;
    return o.has("shared") && !o.has("bulk") && !o.has("mbarrier") && (insn.run = copy_async);
  }
  if (op == "ldmatrix") {
    insn.space = Space::kShared;
    insn.mode = static_cast<u8>((o.has("x4") ? 4 : o.has("x2") ? 2 : 1) | (o.has("trans") ? 8 : 0));
    return o.has("m8n8") && (insn.run = load_matrix);
  }
  if ((op != "ld" && op != "ldu" && op != "st") || o.has("local")) return false;
  insn.bytes = static_cast<u8>(type_bytes(o.type()));
  insn.is_signed = o.type()[0] == 's';
  insn.mode = o.has("v4") ? 4 : o.has("v2") ? 2 : 1;
  insn.run = op == "st" ? store : o.has("param") ? load_param : load;
  return insn.bytes && !(op == "st" && o.has("param"));
}

}  // namespace simgpu
