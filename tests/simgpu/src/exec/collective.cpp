// shfl, vote, match, redux, activemask, barriers. For Flow::kWarpSync the executor has gathered the lanes of
// the member mask (op[4]) before the handler runs.
#include <algorithm>

#include "exec/warp.h"

namespace simgpu {
namespace {

enum ShuffleMode : u8 { kUp, kDown, kButterfly, kIndex };

// op: d, p (or none), a, b, members; c: operands[extra]
void shuffle(Warp& w, const Insn& i, u32 mask) {
  const u32 *a = w.lanes<u32>(i.op[2]), *b = w.lanes<u32>(i.op[3]);
  const u32* c = w.lanes<u32>(w.frame->function->operands[i.extra]);
  u32 result[32], inside = 0;
  for_lanes(mask, [&](int l) {
    const int clamp = c[l] & 31, segment = c[l] >> 8 & 31, lane = l;
    const int highest = (lane & segment) | (clamp & ~segment), lowest = lane & segment;
    const int n = b[l] & 31;
    int source = i.mode == kUp          ? lane - n
                 : i.mode == kDown      ? lane + n
                 : i.mode == kButterfly ? lane ^ n
                                        : lowest | (n & ~segment);
    const bool in_range = i.mode == kUp ? source >= highest : source <= highest;
    if (!in_range) source = lane;
    inside |= u32{in_range} << l;
    if ((mask >> source & 1) == 0) {
      report(w, i, l, FaultKind::kInactiveLane,
             "shfl reads lane " + std::to_string(source) + ", which is not active");
    }
    result[l] = a[source];
  });
  for_lanes(mask, [&](int l) { w.lanes<u32>(i.op[0])[l] = result[l]; });
  if (i.op[1] != kNone) {
    u32& p = w.predicate(i.op[1]);
    p = (p & ~mask) | (inside & mask);
  }
}
enum VoteMode : u8 { kBallot, kAny, kAll, kUniform };
void vote(Warp& w, const Insn& i, u32 mask) {
  const u32 p = w.predicate(i.op[1]) & mask;
  if (i.mode == kBallot) {
    for_lanes(mask, [&](int l) { w.lanes<u32>(i.op[0])[l] = p; });
    return;
  }
  const bool yes = i.mode == kAny ? p != 0 : i.mode == kAll ? p == mask : p == 0 || p == mask;
  u32& d = w.predicate(i.op[0]);
  d = (d & ~mask) | (yes ? mask : 0);
}
template <class T>
void match_any(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  u32 result[32];
  for_lanes(mask, [&](int l) {
    result[l] = 0;
    for_lanes(mask, [&](int k) { result[l] |= u32{a[k] == a[l]} << k; });
  });
  for_lanes(mask, [&](int l) { w.lanes<u32>(i.op[0])[l] = result[l]; });
}
template <class T>
void match_all(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  bool same = true;
  for_lanes(mask, [&](int l) { same = same && a[l] == a[std::countr_zero(mask)]; });
  for_lanes(mask, [&](int l) { w.lanes<u32>(i.op[0])[l] = same ? mask : 0; });
  if (i.op[2] != kNone) {
    u32& p = w.predicate(i.op[2]);
    p = (p & ~mask) | (same ? mask : 0);
  }
}
enum ReduceMode : u8 { kAdd, kMin, kMax, kAnd, kOr, kXor };
template <class T>
void reduce(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  T r = a[std::countr_zero(mask)];
  for_lanes(mask & (mask - 1), [&](int l) {
    const T x = a[l];
    switch (i.mode) {
      case kAdd:
        r = static_cast<T>(static_cast<u32>(r) + static_cast<u32>(x));
        break;
      case kMin:
        r = std::min(r, x);
        break;
      case kMax:
        r = std::max(r, x);
        break;
      case kAnd:
        r &= x;
        break;
      case kOr:
        r |= x;
        break;
      default:
        r ^= x;
        break;
    }
  });
  for_lanes(mask, [&](int l) { w.lanes<T>(i.op[0])[l] = r; });
}
void active_mask(Warp& w, const Insn& i, u32 mask) {
  for_lanes(mask, [&](int l) { w.lanes<u32>(i.op[0])[l] = mask; });
}
void elect(Warp& w, const Insn& i, u32 mask) {
  const u32 leader = static_cast<u32>(std::countr_zero(mask));
  for_lanes(mask, [&](int l) { w.lanes<u32>(i.op[0])[l] = leader; });
  u32& p = w.predicate(i.op[1]);
  p = (p & ~mask) | 1u << leader;
}
void trap(Warp& w, const Insn& i, u32 mask) {
  report(w, i, std::countr_zero(mask), FaultKind::kTrap, "the kernel executed a trap");
}
void nothing(Warp&, const Insn&, u32) {}

template <size_t kN>
bool find_mode(const Opcode& o, const std::string_view (&names)[kN], u8& mode) {
  for (size_t k = 0; k < kN; ++k) {
    if (o.has(names[k])) return mode = static_cast<u8>(k), true;
  }
  return false;
}

// bar.sync id {, threads}; bar.red.op d, id {, threads}, p; bar.arrive id, threads
bool select_barrier(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  insn.category = InstructionClass::kBarrier;
  if (o.has("warp")) {
    insn.flow = Flow::kWarpBarrier;
    insn.op[4] = d.value(args.at(0), 4);
    insn.run = nothing;
    return true;
  }
  insn.flow = Flow::kBlockBarrier;
  insn.run = nothing;
  insn.mode = kBarrierSync;
  size_t next = 0;
  if (o.has("arrive")) {
    insn.mode = kBarrierArrive;
  } else if (o.has("red")) {
    insn.mode = o.has("popc") ? kBarrierPopcount : o.has("and") ? kBarrierAnd : kBarrierOr;
    if (insn.mode == kBarrierOr && !o.has("or")) return false;
    insn.op[2] = insn.mode == kBarrierPopcount ? d.result(args.at(next), 4) : d.result(args.at(next), 0);
    ++next;
    insn.op[3] = d.predicate(args.back());
  } else if (!o.has("sync")) {
    return false;
  }
  insn.op[0] = d.value(args.at(next++), 4);
  const size_t end = o.has("red") ? args.size() - 1 : args.size();
  if (next < end) insn.op[1] = d.value(args[next], 4);
  return true;
}

}  // namespace

bool select_collective(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view name = o.name();
  insn.category = InstructionClass::kWarpCollective;
  if (name == "trap") return insn.run = trap, true;
  if (name == "brkpt" || name == "pmevent") return insn.run = nothing, true;
  if (name == "nanosleep") {
    insn.run = nothing;
    return true;
  }
  if (name == "activemask") {
    insn.op[0] = d.result(args.at(0), 4);
    return insn.run = active_mask, true;
  }
  if (name == "bar" || name == "barrier") return select_barrier(d, insn, o, args);
  if (name != "shfl" && name != "vote" && name != "match" && name != "redux" && name != "elect") return false;
  if (!o.has("sync")) return false;
  insn.flow = Flow::kWarpSync;
  insn.op[4] = d.value(args.back(), 4);
  if (name == "shfl") {
    constexpr std::string_view kNames[] = {"up", "down", "bfly", "idx"};
    if (!find_mode(o, kNames, insn.mode)) return false;
    const bool pair = args.at(0).kind == Argument::Kind::kPair;
    insn.op[0] = d.result(pair ? args[0].elements[0] : args[0].word, 4);
    if (pair) insn.op[1] = d.result(args[0].elements[1], 0);
    insn.op[2] = d.value(args.at(1), 4);
    insn.op[3] = d.value(args.at(2), 4);
    const u32 clamp[] = {d.value(args.at(3), 4)};
    d.add_operands(insn, clamp);
    return insn.run = shuffle, true;
  }
  if (name == "vote") {
    constexpr std::string_view kNames[] = {"ballot", "any", "all", "uni"};
    if (!find_mode(o, kNames, insn.mode)) return false;
    insn.op[0] = d.result(args.at(0), insn.mode == kBallot ? 4 : 0);
    insn.op[1] = d.predicate_or_constant(args.at(1));
    return insn.run = vote, true;
  }
  if (name == "elect") {
    const auto& pair = args.at(0);
    if (pair.kind != Argument::Kind::kPair) return false;
    insn.op[0] = d.result(pair.elements[0], 4);
    insn.op[1] = d.result(pair.elements[1], 0);
    return insn.run = elect, true;
  }
  const u32 width = static_cast<u32>(type_bytes(o.type()));
  if (name == "match") {
    const bool all = o.has("all");
    if (!all && !o.has("any")) return false;
    insn.op[1] = d.value(args.at(1), width);
    const bool pair = args[0].kind == Argument::Kind::kPair;
    insn.op[0] = d.result(pair ? args[0].elements[0] : args[0].word, 4);
    if (pair) insn.op[2] = d.result(args[0].elements[1], 0);
    insn.run = width == 8 ? (all ? match_all<u64> : match_any<u64>) : (all ? match_all<u32> : match_any<u32>);
    return true;
  }
  constexpr std::string_view kNames[] = {"add", "min", "max", "and", "or", "xor"};
  if (!find_mode(o, kNames, insn.mode)) return false;
  insn.op[0] = d.result(args.at(0), 4);
  insn.op[1] = d.value(args.at(1), 4);
  insn.run = o.type() == "s32" ? reduce<i32> : reduce<u32>;
  return true;
}

}  // namespace simgpu
