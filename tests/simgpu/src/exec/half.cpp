// f16 and bf16, one or two to a register.
#include <algorithm>
#include <cmath>

#include "exec/real.h"
#include "exec/warp.h"

namespace simgpu {
namespace {

struct Add {
  static double apply(double a, double b, double) { return a + b; }
};
struct Sub {
  static double apply(double a, double b, double) { return a - b; }
};
struct Mul {
  static double apply(double a, double b, double) { return a * b; }
};
struct Fma {
  static double apply(double a, double b, double c) { return fma_to_odd(a, b, c); }
};
struct Exp2 {
  static double apply(double a, double, double) { return std::exp2(a); }
};
struct Tanh {
  static double apply(double a, double, double) { return std::tanh(a); }
};

enum Modifier : u8 { kFlush = 1, kSaturate = 2, kRelu = 4, kNan = 8 };

template <class T>
u16 flush_half(u16 bits) {
  const u16 exponent = std::is_same_v<T, Half> ? 0x7c00 : 0x7f80;
  return (bits & exponent) == 0 ? bits & 0x8000 : bits;
}

template <class T, class Op>
u16 compute(u16 a, u16 b, u16 c, u8 mode) {
  if (mode & kFlush) a = flush_half<T>(a), b = flush_half<T>(b), c = flush_half<T>(c);
  const double x = widen(T{a}), y = widen(T{b}), z = widen(T{c});
  double r = Op::apply(x, y, z);
  if (mode & kSaturate) r = saturate(r);
  if ((mode & kRelu) != 0 && r <= 0) r = 0;
  u16 bits = narrow<T>(r).bits;
  if (mode & kFlush) bits = flush_half<T>(bits);
  return bits;
}
template <class T, bool kMax>
u16 extreme(u16 a, u16 b, u8 mode) {
  if (mode & kFlush) a = flush_half<T>(a), b = flush_half<T>(b);
  const float x = widen(T{a}), y = widen(T{b});
  if (std::isnan(x) || std::isnan(y)) {
    if ((mode & kNan) != 0 || (std::isnan(x) && std::isnan(y))) return 0x7fff;
    return std::isnan(x) ? b : a;
  }
  if (x == y) return std::signbit(x) == kMax ? b : a;  // zeros: -0 is below +0
  return (x > y) == kMax ? a : b;
}

template <class F>
void each_half(Warp& w, const Insn& i, u32 mask, F&& f) {
  const u32 sources = i.count, halves = i.bytes / 2;
  for_lanes(mask, [&](int l) {
    u16 in[3][2] = {}, out[2];
    for (u32 s = 0; s < sources; ++s) std::memcpy(in[s], w.file + i.op[s + 1] + l * i.bytes, i.bytes);
    for (u32 h = 0; h < halves; ++h) out[h] = f(in[0][h], in[1][h], in[2][h]);
    std::memcpy(w.file + i.op[0] + l * i.bytes, out, i.bytes);
  });
}
template <class T, class Op>
void arithmetic(Warp& w, const Insn& i, u32 mask) {
  each_half(w, i, mask, [mode = i.mode](u16 a, u16 b, u16 c) { return compute<T, Op>(a, b, c, mode); });
}
template <class T, bool kMax>
void extremes(Warp& w, const Insn& i, u32 mask) {
  each_half(w, i, mask, [mode = i.mode](u16 a, u16 b, u16) { return extreme<T, kMax>(a, b, mode); });
}
template <class T>
void negate(Warp& w, const Insn& i, u32 mask) {
  each_half(w, i, mask,
            [f = i.mode & kFlush](u16 a, u16, u16) -> u16 { return (f ? flush_half<T>(a) : a) ^ 0x8000; });
}
template <class T>
void absolute(Warp& w, const Insn& i, u32 mask) {
  each_half(w, i, mask,
            [f = i.mode & kFlush](u16 a, u16, u16) -> u16 { return (f ? flush_half<T>(a) : a) & 0x7fff; });
}

// set.CmpOp.dtype.{f16x2,bf16x2}: insn.imm where the comparison holds, else 0. From kUnordered on also of a
// NaN.
constexpr std::string_view kComparisons[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "num",
                                             "equ", "neu", "ltu", "leu", "gtu", "geu", "nan"};
constexpr u8 kUnordered = 7;
template <class T>
void compare_pairs(Warp& w, const Insn& i, u32 mask) {
  each_half(w, i, mask, [&](u16 a, u16 b, u16) -> u16 {
    const float x = widen(T{a}), y = widen(T{b});
    const bool ordered = i.mode < kUnordered;
    if (std::isnan(x) || std::isnan(y)) return ordered ? 0 : static_cast<u16>(i.imm);
    const bool holds[] = {x == y, x != y, x<y, x <= y, x> y, x >= y, ordered};
    return holds[i.mode % kUnordered] ? static_cast<u16>(i.imm) : 0;
  });
}
bool select_comparison(Insn& insn, const Opcode& o, bool half) {
  const auto found = std::find(std::begin(kComparisons), std::end(kComparisons), o.part(1));
  const std::string_view to = o.parts.at(o.parts.size() - 2);
  if (found == std::end(kComparisons) || (to != o.type() && to != "u32" && to != "s32")) return false;
  insn.mode = static_cast<u8>(found - std::begin(kComparisons));
  insn.imm = to != o.type() ? 0xffff : half ? 0x3c00 : 0x3f80;
  insn.run = half ? compare_pairs<Half> : compare_pairs<Bfloat>;
  return true;
}

// Arithmetic of bf16 on sm_80 is fma, with which the headers add and multiply too; the rest came with sm_90.
template <class T>
Handler handler_of(std::string_view name, size_t& sources) {
  sources = 2;
  if (name == "min") return extremes<T, false>;
  if (name == "max") return extremes<T, true>;
  if (name == "fma") {
    sources = 3;
    return arithmetic<T, Fma>;
  }
  if constexpr (std::is_same_v<T, Half>) {
    if (name == "add") return arithmetic<T, Add>;
    if (name == "sub") return arithmetic<T, Sub>;
    if (name == "mul") return arithmetic<T, Mul>;
  }
  sources = 1;
  if (name == "neg") return negate<T>;
  if (name == "abs") return absolute<T>;
  if constexpr (std::is_same_v<T, Half>) {
    if (name == "ex2") return arithmetic<T, Exp2>;
    if (name == "tanh") return arithmetic<T, Tanh>;
  }
  return nullptr;
}

}  // namespace

bool select_half(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view type = o.type();
  const bool half = type == "f16" || type == "f16x2";
  if (!half && type != "bf16" && type != "bf16x2") return false;
  insn.category = InstructionClass::kHalf;
  size_t sources = 2;
  if (o.name() == "set" && type.ends_with("x2")) {
    if (!select_comparison(insn, o, half)) return false;
  } else {
    insn.run = half ? handler_of<Half>(o.name(), sources) : handler_of<Bfloat>(o.name(), sources);
    const bool mixed =
        std::any_of(o.parts.begin() + 1, o.parts.end() - 1, [](auto p) { return type_bytes(p) != 0; });
    if (insn.run == nullptr || mixed) return false;
    insn.mode = static_cast<u8>((half && o.has("ftz") ? kFlush : 0) | (half && o.has("sat") ? kSaturate : 0)
                                | (o.has("relu") ? kRelu : 0) | (o.has("NaN") ? kNan : 0));
  }
  insn.count = static_cast<u8>(sources);
  resolve(d, insn, args, static_cast<u32>(type_bytes(type)), sources);
  return true;
}

}  // namespace simgpu
