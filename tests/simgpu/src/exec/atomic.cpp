// atom and red, on global, shared and generic addresses.
#include <algorithm>
#include <mutex>

#include "exec/access.h"
#include "exec/real.h"

namespace simgpu {
namespace {

enum class Operation : u8 {
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor,
  kExchange,
  kCompareSwap,
  kIncrement,
  kDecrement
};

// Host threads run blocks at once; one lock a stripe of addresses serialises their atomics, of any type.
std::mutex& lock_of(const void* address) {
  static std::mutex locks[256];
  return locks[(reinterpret_cast<u64>(address) >> 4) & 255];
}

template <class T>
T combine(Operation op, T old, T b, T c) {
  switch (op) {
    case Operation::kAdd:
      return static_cast<T>(old + b);
    case Operation::kMin:
      return std::min(old, b);
    case Operation::kMax:
      return std::max(old, b);
    case Operation::kExchange:
      return b;
    case Operation::kCompareSwap:
      return old == b ? c : old;
    default:
      break;
  }
  if constexpr (std::is_unsigned_v<T>) {
    switch (op) {
      case Operation::kAnd:
        return old & b;
      case Operation::kOr:
        return old | b;
      case Operation::kXor:
        return old ^ b;
      case Operation::kIncrement:
        return old >= b ? T(0) : static_cast<T>(old + 1);
      case Operation::kDecrement:
        return old == 0 || old > b ? b : static_cast<T>(old - 1);
      default:
        break;
    }
  }
  return old;
}
template <class H>
u16 add_halves(u16 a, u16 b) {
  return narrow<H>(static_cast<double>(widen(H{a})) + widen(H{b})).bits;
}
template <class H>
u32 add_pairs(u32 a, u32 b) {
  return u32{add_halves<H>(static_cast<u16>(a), static_cast<u16>(b))}
         | u32{add_halves<H>(static_cast<u16>(a >> 16), static_cast<u16>(b >> 16))} << 16;
}

template <class T, class F>
void update(Warp& w, const Insn& i, u32 mask, F&& f) {
  Access access;
  if (i.synchronises) w.block->launch->synchronised = true;
  resolve_access(w, i, mask, sizeof(T), AccessKind::kAtomic, access);
  counts->work[i.number].atomics += static_cast<u64>(std::popcount(mask));
  const T* b = w.lanes<T>(i.op[2]);
  const T* c = i.op[3] == kNone ? b : w.lanes<T>(i.op[3]);
  for_lanes(mask, [&](int l) {
    T old;
    {
      const std::lock_guard lock(lock_of(access.at[l]));
      std::memcpy(&old, access.at[l], sizeof(T));
      const T now = f(old, b[l], c[l]);
      std::memcpy(access.at[l], &now, sizeof(T));
    }
    if (i.op[0] != kNone) w.lanes<T>(i.op[0])[l] = old;
  });
}
template <class T>
void atomic(Warp& w, const Insn& i, u32 mask) {
  const auto op = static_cast<Operation>(i.mode);
  update<T>(w, i, mask, [op](T old, T b, T c) { return combine(op, old, b, c); });
}
template <class T, T (*kFunction)(T, T)>
void atomic_by(Warp& w, const Insn& i, u32 mask) {
  update<T>(w, i, mask, [](T old, T b, T) { return kFunction(old, b); });
}

Handler handler_of(std::string_view type, Operation op) {
  const bool add = op == Operation::kAdd;
  if (type == "f32") return add ? atomic<float> : nullptr;
  if (type == "f64") return add ? atomic<double> : nullptr;
  if (type == "f16x2") return add ? atomic_by<u32, add_pairs<Half>> : nullptr;
  if (type == "bf16x2") return add ? atomic_by<u32, add_pairs<Bfloat>> : nullptr;
  if (type == "f16") return add ? atomic_by<u16, add_halves<Half>> : nullptr;
  if (type == "bf16") return add ? atomic_by<u16, add_halves<Bfloat>> : nullptr;
  if (type == "s32") return op == Operation::kMin || op == Operation::kMax ? atomic<i32> : atomic<u32>;
  if (type == "s64") return op == Operation::kMin || op == Operation::kMax ? atomic<i64> : atomic<u64>;
  if (type == "u32" || type == "b32") return atomic<u32>;
  if (type == "u64" || type == "b64") return atomic<u64>;
  return type == "b16" ? atomic<u16> : nullptr;
}

}  // namespace

bool select_atomic(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const bool reduce = o.name() == "red";
  if (!reduce && o.name() != "atom") return false;
  constexpr std::string_view kNames[] = {"add", "min",  "max", "and", "or",
                                         "xor", "exch", "cas", "inc", "dec"};
  size_t op = 0;
  while (op < std::size(kNames) && !o.has(kNames[op])) ++op;
  if (op == std::size(kNames)) return false;
  insn.category = InstructionClass::kAtomic;
  insn.mode = static_cast<u8>(op);
  insn.relaxed = true;
  insn.synchronises = !o.has("cta") && (o.has("acquire") || o.has("release") || o.has("acq_rel"));
  insn.space = o.has("global")                           ? Space::kGlobal
               : o.has("shared") || o.has("shared::cta") ? Space::kShared
                                                         : Space::kGeneric;
  const u32 width = static_cast<u32>(type_bytes(o.type()));
  insn.bytes = static_cast<u8>(width);
  insn.run = handler_of(o.type(), static_cast<Operation>(op));
  if (insn.run == nullptr) return false;
  size_t next = 0;
  if (!reduce) insn.op[0] = d.result(args.at(next++), width);
  d.address(insn, args.at(next++));
  insn.op[2] = d.value(args.at(next++), width);
  if (next < args.size()) insn.op[3] = d.value(args[next], width);
  return true;
}

}  // namespace simgpu
