// mov, selp, setp, set, slct, cvta and the rest that moves or compares values.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "exec/real.h"
#include "exec/warp.h"

namespace simgpu {
namespace {

template <class T>
void move(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) { return a[l]; });
}
void move_predicate(Warp& w, const Insn& i, u32 mask) {
  u32& d = w.predicate(i.op[0]);
  d = (d & ~mask) | (w.predicate(i.op[1]) & mask);
}
void constant_predicate(Warp& w, const Insn& i, u32 mask) {
  u32& d = w.predicate(i.op[0]);
  d = i.imm != 0 ? d | mask : d & ~mask;
}
// Between one register and several narrower ones: mov.b32 {lo, hi}, r and back.
template <class Whole, class Part>
void unpack(Warp& w, const Insn& i, u32 mask) {
  const u32* parts = &w.frame->function->operands[i.extra];
  const Whole* from = w.lanes<Whole>(i.op[1]);
  for (u32 k = 0; k < sizeof(Whole) / sizeof(Part); ++k)
    map(w.lanes<Part>(parts[k]), mask,
        [=](int l) { return static_cast<Part>(from[l] >> 8 * sizeof(Part) * k); });
}
template <class Whole, class Part>
void pack(Warp& w, const Insn& i, u32 mask) {
  const u32* operands = &w.frame->function->operands[i.extra];
  constexpr u32 kCount = sizeof(Whole) / sizeof(Part);
  const Part* parts[kCount];
  for (u32 k = 0; k < kCount; ++k) parts[k] = w.lanes<Part>(operands[k]);
  map(w.lanes<Whole>(i.op[0]), mask, [=](int l) {
    Whole value = 0;
    for (u32 k = 0; k < kCount; ++k) value |= static_cast<Whole>(Whole{parts[k][l]} << 8 * sizeof(Part) * k);
    return value;
  });
}
void read_clock(Warp& w, const Insn& i, u32 mask) {
  const u64 now = static_cast<u64>(std::chrono::steady_clock::now().time_since_epoch().count());
  for_lanes(mask, [&](int l) {
    if (i.bytes == 8)
      w.lanes<u64>(i.op[0])[l] = now;
    else
      w.lanes<u32>(i.op[0])[l] = static_cast<u32>(now);
  });
}
template <class T>
void select(Warp& w, const Insn& i, u32 mask) {
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]);
  const u32 p = w.predicate(i.op[3]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) { return (p >> l & 1) != 0 ? a[l] : b[l]; });
}
template <class T>
void select_by_sign(Warp& w, const Insn& i, u32 mask) {  // slct: c >= 0 ? a : b
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]);
  const i32* c = w.lanes<i32>(i.op[3]);
  const bool real = i.mode != 0;
  map(w.lanes<T>(i.op[0]), mask,
      [=](int l) { return (real ? std::bit_cast<float>(c[l]) >= 0 : c[l] >= 0) ? a[l] : b[l]; });
}
template <u64 kWindow, bool kTo>
void convert_address(Warp& w, const Insn& i, u32 mask) {
  const u64* a = w.lanes<u64>(i.op[1]);
  map(w.lanes<u64>(i.op[0]), mask, [=](int l) { return kTo ? a[l] & ~kWindowMask : a[l] | kWindow; });
}
template <u64 kWindow>
void is_space(Warp& w, const Insn& i, u32 mask) {
  const u64* a = w.lanes<u64>(i.op[1]);
  u32 r = 0;
  for (int l = 0; l < 32; ++l) r |= u32{(a[l] & kWindowMask) == kWindow} << l;
  u32& d = w.predicate(i.op[0]);
  d = (d & ~mask) | (r & mask);
}

enum Comparison : u8 { kEq, kNe, kLt, kLe, kGt, kGe, kNum, kNan };
template <u8 kComparison, class T>
bool compare(T a, T b) {
  switch (kComparison & 7) {
    case kEq:
      return a == b;
    case kNe:
      return a != b;
    case kLt:
      return a < b;
    case kLe:
      return a <= b;
    case kGt:
      return a > b;
    case kGe:
      return a >= b;
    case kNum:
      return a == a && b == b;
    default:
      return a != a || b != b;
  }
}
template <class T>
struct Identity {
  static T get(T x) { return x; }
};
struct FlushFloat {
  static float get(float x) { return flush(x); }
};
struct OfHalf {
  static float get(u16 x) { return widen(Half{x}); }
};
struct OfBfloat {
  static float get(u16 x) { return widen(Bfloat{x}); }
};

// The lanes for which the comparison holds; unordered forms (8) hold for NaN as well, ordered kNe does not.
template <u8 kComparison, bool kUnordered, class Get, class T>
u32 compare_lanes(const Warp& w, const Insn& i) {
  const T* a = reinterpret_cast<const T*>(w.file + i.op[2]);
  const T* b = reinterpret_cast<const T*>(w.file + i.op[3]);
  u32 r = 0;
  for (int l = 0; l < 32; ++l) {
    const auto x = Get::get(a[l]), y = Get::get(b[l]);
    bool yes = compare<kComparison>(x, y);
    if constexpr (!std::is_integral_v<decltype(Get::get(a[l]))>) {
      const bool nan = x != x || y != y;
      if (kUnordered)
        yes = yes || nan;
      else if (kComparison == kNe)
        yes = yes && !nan;
    }
    r |= u32{yes} << l;
  }
  return r;
}
enum Combine : u8 { kAlone, kAnd, kOr, kXor };
u32 combine(const Insn& i, u32 r, u32 c) {
  return i.mode == kAnd ? r & c : i.mode == kOr ? r | c : i.mode == kXor ? r ^ c : r;
}

// op: p, q (or none), a, b, c
template <u8 kComparison, bool kUnordered, class Get, class T>
void set_predicate(Warp& w, const Insn& i, u32 mask) {
  const u32 r = compare_lanes<kComparison, kUnordered, Get, T>(w, i);
  const u32 c = i.op[4] == kNone ? 0 : w.predicate(i.op[4]);
  u32& p = w.predicate(i.op[0]);
  if (i.op[1] != kNone) {
    u32& q = w.predicate(i.op[1]);
    q = (q & ~mask) | (combine(i, ~r, c) & mask);
  }
  p = (p & ~mask) | (combine(i, r, c) & mask);
}
// set.CmpOp.dtype: all ones (integers), 1.0 (f32) or 0
template <u8 kComparison, bool kUnordered, class Get, class T>
void set_value(Warp& w, const Insn& i, u32 mask) {
  const u32 r = combine(i, compare_lanes<kComparison, kUnordered, Get, T>(w, i),
                        i.op[4] == kNone ? 0 : w.predicate(i.op[4]));
  const u32 one = static_cast<u32>(i.imm);
  if (i.bytes == 2) {
    map(w.lanes<u16>(i.op[0]), mask, [=](int l) { return static_cast<u16>((r >> l & 1) != 0 ? one : 0); });
  } else {
    map(w.lanes<u32>(i.op[0]), mask, [=](int l) { return (r >> l & 1) != 0 ? one : 0u; });
  }
}

template <u8 kComparison, bool kUnordered>
Handler comparison_of(std::string_view type, bool ftz, bool value) {
  const auto pick = [&]<class Get, class T>() -> Handler {
    return value ? set_value<kComparison, kUnordered, Get, T>
                 : set_predicate<kComparison, kUnordered, Get, T>;
  };
  if (type == "f32")
    return ftz ? pick.template operator()<FlushFloat, float>()
               : pick.template operator()<Identity<float>, float>();
  if (type == "f64") return pick.template operator()<Identity<double>, double>();
  if (ftz && type != "f64") return nullptr;
  if (type == "f16") return pick.template operator()<OfHalf, u16>();
  if (type == "bf16") return pick.template operator()<OfBfloat, u16>();
  if constexpr (!kUnordered && kComparison < kNum) {
    if (type == "s32") return pick.template operator()<Identity<i32>, i32>();
    if (type == "u32" || type == "b32") return pick.template operator()<Identity<u32>, u32>();
    if (type == "s64") return pick.template operator()<Identity<i64>, i64>();
    if (type == "u64" || type == "b64") return pick.template operator()<Identity<u64>, u64>();
    if (type == "s16") return pick.template operator()<Identity<i16>, i16>();
    if (type == "u16" || type == "b16") return pick.template operator()<Identity<u16>, u16>();
  }
  return nullptr;
}
Handler comparison(std::string_view op, std::string_view type, bool ftz, bool value) {
  if (op == "eq") return comparison_of<kEq, false>(type, ftz, value);
  if (op == "ne") return comparison_of<kNe, false>(type, ftz, value);
  if (op == "lt" || op == "lo") return comparison_of<kLt, false>(type, ftz, value);
  if (op == "le" || op == "ls") return comparison_of<kLe, false>(type, ftz, value);
  if (op == "gt" || op == "hi") return comparison_of<kGt, false>(type, ftz, value);
  if (op == "ge" || op == "hs") return comparison_of<kGe, false>(type, ftz, value);
  if (op == "equ") return comparison_of<kEq, true>(type, ftz, value);
  if (op == "neu") return comparison_of<kNe, true>(type, ftz, value);
  if (op == "ltu") return comparison_of<kLt, true>(type, ftz, value);
  if (op == "leu") return comparison_of<kLe, true>(type, ftz, value);
  if (op == "gtu") return comparison_of<kGt, true>(type, ftz, value);
  if (op == "geu") return comparison_of<kGe, true>(type, ftz, value);
  if (op == "num") return comparison_of<kNum, false>(type, ftz, value);
  if (op == "nan") return comparison_of<kNan, false>(type, ftz, value);
  return nullptr;
}

Handler move_of(u32 width) {
  return width == 1   ? move<u8>
         : width == 2 ? move<u16>
         : width == 4 ? move<u32>
         : width == 8 ? move<u64>
                      : nullptr;
}

Handler pack_of(u32 width, u32 parts, bool packs) {
  const auto pick = [&]<class Whole, class Part>() -> Handler {
    return packs ? pack<Whole, Part> : unpack<Whole, Part>;
  };
  __extension__ using u128 = unsigned __int128;
  switch (width * 16 + parts) {
    case 2 * 16 + 2:
      return pick.template operator()<u16, u8>();
    case 4 * 16 + 2:
      return pick.template operator()<u32, u16>();
    case 4 * 16 + 4:
      return pick.template operator()<u32, u8>();
    case 8 * 16 + 2:
      return pick.template operator()<u64, u32>();
    case 8 * 16 + 4:
      return pick.template operator()<u64, u16>();
    case 8 * 16 + 8:
      return pick.template operator()<u64, u8>();
    case 16 * 16 + 2:
      return pick.template operator()<u128, u64>();
    case 16 * 16 + 4:
      return pick.template operator()<u128, u32>();
    default:
      return nullptr;
  }
}

bool select_mov(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const Argument &to = args.at(0), &from = args.at(1);
  if (o.type() == "pred") {
    insn.category = InstructionClass::kPredicate;
    insn.op[0] = d.result(to, 0);
    if (d.width_of(from.word) == 0) {
      insn.op[1] = d.predicate(from);
      insn.run = move_predicate;
    } else {
      insn.imm = std::strtoll(std::string(from.word).c_str(), nullptr, 0);
      insn.run = constant_predicate;
    }
    return true;
  }
  const u32 width = static_cast<u32>(type_bytes(o.type()));
  insn.bytes = static_cast<u8>(width);
  const bool packs = from.kind == Argument::Kind::kList;
  if (packs || to.kind == Argument::Kind::kList) {
    const std::vector<std::string_view>& names = packs ? from.elements : to.elements;
    insn.count = static_cast<u8>(names.size());
    std::vector<u32> parts;
    for (const std::string_view name : names) {
      const u32 part = width / insn.count;
      parts.push_back(packs ? d.value(name, part) : d.result(name, part));
    }
    d.add_operands(insn, parts);
    insn.op[packs ? 0 : 1] = packs ? d.result(to, width) : d.value(from, width);
    insn.run = pack_of(width, insn.count, packs);
    return insn.run != nullptr;
  }
  insn.op[0] = d.result(to, width);
  if (from.word.starts_with("%clock") || from.word.starts_with("%globaltimer")) {
    insn.run = read_clock;
    return true;
  }
  insn.op[1] = d.value(from, width);
  insn.run = move_of(width);
  return insn.run != nullptr;
}

}  // namespace

bool select_move(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view name = o.name();
  insn.category = InstructionClass::kMove;
  if (name == "mov") return select_mov(d, insn, o, args);
  if (name == "cvta") {
    insn.op[0] = d.result(args.at(0), 8);
    insn.op[1] = d.value(args.at(1), 8);
    const bool to = o.has("to");
    insn.run =
        o.has("shared") || o.has("shared::cta")
            ? (to ? convert_address<kSharedWindow, true> : convert_address<kSharedWindow, false>)
        : o.has("local") ? (to ? convert_address<kLocalWindow, true> : convert_address<kLocalWindow, false>)
        : o.has("param") ? (to ? convert_address<kParamWindow, true> : convert_address<kParamWindow, false>)
                         : move<u64>;
    return o.type() == "u64";
  }
  if (name == "isspacep") {
    insn.op[0] = d.result(args.at(0), 0);
    insn.op[1] = d.value(args.at(1), 8);
    insn.run = o.has("shared")   ? is_space<kSharedWindow>
               : o.has("local")  ? is_space<kLocalWindow>
               : o.has("global") ? is_space<0>
                                 : nullptr;
    return insn.run != nullptr;
  }
  if (name == "selp" || name == "slct") {
    const u32 width =
        static_cast<u32>(type_bytes(name == "selp" ? o.type() : o.parts.at(o.parts.size() - 2)));
    insn.op[0] = d.result(args.at(0), width);
    insn.op[1] = d.value(args.at(1), width);
    insn.op[2] = d.value(args.at(2), width);
    const bool by_predicate = name == "selp";
    insn.op[3] = by_predicate ? d.predicate(args.at(3)) : d.value(args.at(3), 4);
    insn.mode = o.type() == "f32";
    const auto pick = [&]<class T>() -> Handler { return by_predicate ? select<T> : select_by_sign<T>; };
    insn.run = width == 2   ? pick.template operator()<u16>()
               : width == 4 ? pick.template operator()<u32>()
               : width == 8 ? pick.template operator()<u64>()
                            : nullptr;
    return insn.run != nullptr;
  }
  return false;
}

bool select_compare(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view name = o.name(), type = o.type();
  if (name != "setp" && name != "set") return false;
  const bool value = name == "set";
  insn.category = InstructionClass::kPredicate;
  insn.mode = o.has("and") ? kAnd : o.has("or") ? kOr : o.has("xor") ? kXor : kAlone;
  insn.run = comparison(o.part(1), type, o.has("ftz"), value);
  if (insn.run == nullptr) return false;
  const u32 width = static_cast<u32>(type_bytes(type));
  if (value) {
    const std::string_view to = o.parts.at(o.parts.size() - 2);
    insn.bytes = static_cast<u8>(type_bytes(to));
    insn.imm = to == "f32" ? 0x3f800000 : to == "f16" ? 0x3c00 : to == "bf16" ? 0x3f80 : 0xffffffff;
    insn.op[0] = d.result(args.at(0), insn.bytes);
  } else if (args.at(0).kind == Argument::Kind::kPair) {
    insn.op[0] = d.result(args[0].elements[0], 0);
    insn.op[1] = d.result(args[0].elements[1], 0);
  } else {
    insn.op[0] = d.result(args[0], 0);
  }
  insn.op[2] = d.value(args.at(1), width);
  insn.op[3] = d.value(args.at(2), width);
  if (insn.mode != kAlone) insn.op[4] = d.predicate(args.at(3));
  return true;
}

}  // namespace simgpu
