// Arithmetic, comparison, selection and conversion: one template a shape, vectorised over the 32 lanes.
#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "warp.h"

namespace simgpu {
namespace {

using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

template <class F>
inline void for_lanes(u32 mask, F f) {
  if (mask == kFullMask) {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) f(l);
  } else {
    for (u32 m = mask; m; m &= m - 1) f(std::countr_zero(m));
  }
}

template <class T, auto F>
void unary(Warp& w, const Insn& i, u32 mask) {
  T *d = lanes<T>(w, i.op[0]), *a = lanes<T>(w, i.op[1]);
  for_lanes(mask, [=](int l) { d[l] = F(a[l]); });
}
template <class T, auto F>
void binary(Warp& w, const Insn& i, u32 mask) {
  T *d = lanes<T>(w, i.op[0]), *a = lanes<T>(w, i.op[1]), *b = lanes<T>(w, i.op[2]);
  for_lanes(mask, [=](int l) { d[l] = F(a[l], b[l]); });
}
template <class T, auto F>
void ternary(Warp& w, const Insn& i, u32 mask) {
  T *d = lanes<T>(w, i.op[0]), *a = lanes<T>(w, i.op[1]), *b = lanes<T>(w, i.op[2]), *c = lanes<T>(w, i.op[3]);
  for_lanes(mask, [=](int l) { d[l] = F(a[l], b[l], c[l]); });
}
template <class T, auto F>
void shift(Warp& w, const Insn& i, u32 mask) {
  T *d = lanes<T>(w, i.op[0]), *a = lanes<T>(w, i.op[1]);
  const u32* b = lanes<u32>(w, i.op[2]);
  for_lanes(mask, [=](int l) { d[l] = F(a[l], b[l]); });
}
template <class T, class Wide>
void multiply_wide(Warp& w, const Insn& i, u32 mask) {
  Wide* d = lanes<Wide>(w, i.op[0]);
  T *a = lanes<T>(w, i.op[1]), *b = lanes<T>(w, i.op[2]);
  if (i.mode == 0) return for_lanes(mask, [=](int l) { d[l] = Wide(a[l]) * Wide(b[l]); });
  Wide* c = lanes<Wide>(w, i.op[3]);
  for_lanes(mask, [=](int l) { d[l] = Wide(a[l]) * Wide(b[l]) + c[l]; });
}
template <class T>
void copy(Warp& w, const Insn& i, u32 mask) {
  T *d = lanes<T>(w, i.op[0]), *a = lanes<T>(w, i.op[1]);
  for_lanes(mask, [=](int l) { d[l] = a[l]; });
}
template <class T>
void select(Warp& w, const Insn& i, u32 mask) {
  T *d = lanes<T>(w, i.op[0]), *a = lanes<T>(w, i.op[1]), *b = lanes<T>(w, i.op[2]);
  const u32 p = predicate(w, i.op[3]);
  for_lanes(mask, [=](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

enum Compare : u8 { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };
constexpr std::string_view kCompareNames[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                              "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
constexpr std::string_view kUnsignedNames[] = {"eq", "ne", "lo", "ls", "hi", "hs"};

template <class T>
void compare(Warp& w, const Insn& i, u32 mask) {
  const T *a = lanes<T>(w, i.op[1]), *b = lanes<T>(w, i.op[2]);
  u32 r = 0;
  auto all = [&](auto f) {
    for (int l = 0; l < 32; ++l) r |= u32(f(a[l], b[l])) << l;
  };
  switch (i.mode & 15) {
    case kEq: all([](T x, T y) { return x == y; }); break;
    case kNe: all([](T x, T y) { return x != y && x == x && y == y; }); break;
    case kLt: all([](T x, T y) { return x < y; }); break;
    case kLe: all([](T x, T y) { return x <= y; }); break;
    case kGt: all([](T x, T y) { return x > y; }); break;
    case kGe: all([](T x, T y) { return x >= y; }); break;
    case kEqu: all([](T x, T y) { return !(x < y || x > y); }); break;
    case kNeu: all([](T x, T y) { return x != y; }); break;
    case kLtu: all([](T x, T y) { return !(x >= y); }); break;
    case kLeu: all([](T x, T y) { return !(x > y); }); break;
    case kGtu: all([](T x, T y) { return !(x <= y); }); break;
    case kGeu: all([](T x, T y) { return !(x < y); }); break;
    case kNum: all([](T x, T y) { return x == x && y == y; }); break;
    default: all([](T x, T y) { return x != x || y != y; }); break;
  }
  if (i.mode & 16) r &= predicate(w, i.op[3]);
  if (i.mode & 32) r |= predicate(w, i.op[3]);
  u32& d = predicate(w, i.op[0]);
  d = (d & ~mask) | (r & mask);
}

template <auto F>
void predicate_op(Warp& w, const Insn& i, u32 mask) {
  auto value = [&](int k) { return i.count > k ? predicate(w, i.op[k]) : 0u; };
  const u32 r = F(value(1), value(2));
  u32& d = predicate(w, i.op[0]);
  d = (d & ~mask) | (r & mask);
}
void predicate_constant(Warp& w, const Insn& i, u32 mask) {
  u32& d = predicate(w, i.op[0]);
  const u32 r = i.op[1].width == 0 ? predicate(w, i.op[1]) : (lanes<u32>(w, i.op[1])[0] ? kFullMask : 0u);
  d = (d & ~mask) | (r & mask);
}

// Directed rounding goes through the host's rounding mode; this file is compiled with -frounding-math.
template <class T, auto F>
void rounded(Warp& w, const Insn& i, u32 mask) {
  const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  const int old = fegetround();
  fesetround(modes[i.mode]);
  ternary<T, F>(w, i, mask);
  fesetround(old);
}


u16 to_half(double v) {  // round to nearest even from the exact value
  const _Float16 h = static_cast<_Float16>(v);
  return std::bit_cast<u16>(h);
}
u16 to_bfloat(float v) {
  const u32 u = std::bit_cast<u32>(v);
  if (v != v) return 0x7fff;
  return static_cast<u16>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

enum Kind : u8 { kU8, kU16, kU32, kU64, kS8, kS16, kS32, kS64, kF16, kBF16, kF32, kF64, kNoKind };
Kind kind_of(std::string_view t) {
  constexpr std::string_view names[] = {"u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f16", "bf16", "f32", "f64"};
  for (int i = 0; i < 12; ++i) {
    if (t == names[i]) return static_cast<Kind>(i);
  }
  return kNoKind;
}

template <class T>
T float_to_integer(double v, int rounding) {
  if (v != v) return 0;
  v = rounding == 1 ? std::trunc(v) : rounding == 2 ? std::floor(v) : rounding == 3 ? std::ceil(v) : std::nearbyint(v);
  if (v <= static_cast<double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (v >= static_cast<double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return static_cast<T>(v);
}

// mode: bits 0-1 rounding, bit 2 integral float, bit 3 saturate; count: source kind; bytes: destination kind.
void convert(Warp& w, const Insn& i, u32 mask) {
  const auto from = static_cast<Kind>(i.count), to = static_cast<Kind>(i.bytes);
  const int rounding = i.mode & 3;
  for_lanes(mask, [&](int l) {
    const u64 raw = read_any(w, i.op[1], l);
    u64 out = 0;
    if (from < kF16) {
      constexpr int bits[] = {8, 16, 32, 64};
      const int n = bits[from & 3];
      const bool is_signed = from >= kS8;
      s64 v = is_signed ? s64(raw << (64 - n)) >> (64 - n) : s64(raw << (64 - n) >> (64 - n));
      if (to < kF16) {
        out = u64(v);
        if (to < kS8) out = out << (64 - bits[to & 3]) >> (64 - bits[to & 3]);
        if (to >= kS8) out = u64(s64(out << (64 - bits[to & 3])) >> (64 - bits[to & 3]));
      } else if (to == kF32) {
        out = std::bit_cast<u32>(is_signed ? float(v) : float(u64(v)));
      } else if (to == kF64) {
        out = std::bit_cast<u64>(is_signed ? double(v) : double(u64(v)));
      } else {
        out = to_half(is_signed ? double(v) : double(u64(v)));
      }
    } else {
      double v = from == kF64   ? std::bit_cast<double>(raw)
                 : from == kF32 ? double(std::bit_cast<float>(u32(raw)))
                 : from == kF16 ? double(std::bit_cast<_Float16>(u16(raw)))
                                : double(std::bit_cast<float>(u32(raw) << 16));
      if (i.mode & 4) v = rounding == 1 ? std::trunc(v) : rounding == 2 ? std::floor(v) : rounding == 3 ? std::ceil(v) : std::nearbyint(v);
      if (i.mode & 8) v = v > 0 ? std::min(v, 1.0) : 0.0;
      switch (to) {
        case kU8: out = float_to_integer<u8>(v, rounding); break;
        case kU16: out = float_to_integer<u16>(v, rounding); break;
        case kU32: out = float_to_integer<u32>(v, rounding); break;
        case kU64: out = float_to_integer<u64>(v, rounding); break;
        case kS8: out = u64(s64(float_to_integer<s8>(v, rounding))); break;
        case kS16: out = u64(s64(float_to_integer<s16>(v, rounding))); break;
        case kS32: out = u64(s64(float_to_integer<s32>(v, rounding))); break;
        case kS64: out = u64(float_to_integer<s64>(v, rounding)); break;
        case kF16: out = v != v ? 0x7fff : to_half(v); break;
        case kBF16: out = to_bfloat(float(v)); break;
        case kF32: out = v != v ? 0x7fffffff : std::bit_cast<u32>(float(v)); break;
        default: out = std::bit_cast<u64>(v);
      }
    }
    write_any(w, i.op[0], l, out);
  });
}

u32 bit_reverse(u32 v) {
  u32 r = 0;
  for (int b = 0; b < 32; ++b) r |= (v >> b & 1) << (31 - b);
  return r;
}

template <class T>
Handler integer_handler(std::string_view op, bool hi) {
  using U = std::make_unsigned_t<T>;
  if (op == "add") return binary<T, [](T a, T b) { return T(U(a) + U(b)); }>;
  if (op == "sub") return binary<T, [](T a, T b) { return T(U(a) - U(b)); }>;
  if (op == "mul" && hi && sizeof(T) == 8) return nullptr;
  if (op == "mul" && hi) return binary<T, [](T a, T b) { return T((std::conditional_t<std::is_signed_v<T>, s64, u64>(a) * b) >> (8 * sizeof(T) & 63)); }>;
  if (op == "mul") return binary<T, [](T a, T b) { return T(u64(a) * u64(b)); }>;
  if (op == "mad" && !hi) return ternary<T, [](T a, T b, T c) { return T(u64(a) * u64(b) + u64(c)); }>;
  if (op == "div") return binary<T, [](T a, T b) { return b == 0 ? T(-1) : b == T(-1) && std::is_signed_v<T> ? T(U(0) - U(a)) : T(a / b); }>;
  if (op == "rem") return binary<T, [](T a, T b) { return b == 0 ? a : b == T(-1) && std::is_signed_v<T> ? T(0) : T(a % b); }>;
  if (op == "min") return binary<T, [](T a, T b) { return a < b ? a : b; }>;
  if (op == "max") return binary<T, [](T a, T b) { return a > b ? a : b; }>;
  if (op == "neg") return unary<T, [](T a) { return T(U(0) - U(a)); }>;
  if (op == "abs") return unary<T, [](T a) { return T(0) > a ? T(U(0) - U(a)) : a; }>;
  if (op == "shr") return shift<T, [](T a, u32 b) { return b >= sizeof(T) * 8 ? T(a < 0 ? -1 : 0) : T(a >> b); }>;
  if (op == "shl") return shift<T, [](T a, u32 b) { return b >= sizeof(T) * 8 ? T(0) : T(U(a) << b); }>;
  if (op == "and") return binary<T, [](T a, T b) { return T(a & b); }>;
  if (op == "or") return binary<T, [](T a, T b) { return T(a | b); }>;
  if (op == "xor") return binary<T, [](T a, T b) { return T(a ^ b); }>;
  if (op == "not") return unary<T, [](T a) { return T(~a); }>;
  if (op == "mov" || op == "cvta") return copy<T>;
  if (op == "selp") return select<T>;
  if (op == "setp") return compare<T>;
  return nullptr;
}

template <class T>
Handler float_handler(std::string_view op, const Opcode& o) {
  const bool directed = o.has("rz") || o.has("rm") || o.has("rp");
  if (op == "fma" || op == "mad") {
    if (!directed) return ternary<T, [](T a, T b, T c) { return std::fma(a, b, c); }>;
    return rounded<T, [](T a, T b, T c) { return std::fma(a, b, c); }>;
  }
  if (op == "neg") return unary<T, [](T a) { return -a; }>;
  if (op == "abs") return unary<T, [](T a) { return std::fabs(a); }>;
  if (op == "min") return binary<T, [](T a, T b) { return std::fmin(a, b); }>;
  if (op == "max") return binary<T, [](T a, T b) { return std::fmax(a, b); }>;
  if (op == "mov") return copy<T>;
  if (op == "selp") return select<T>;
  if (op == "setp") return compare<T>;
  if (directed || o.has("sat")) return nullptr;
  if (op == "add") return binary<T, [](T a, T b) { return a + b; }>;
  if (op == "sub") return binary<T, [](T a, T b) { return a - b; }>;
  if (op == "mul") return binary<T, [](T a, T b) { return a * b; }>;
  if (op == "div") return binary<T, [](T a, T b) { return a / b; }>;
  if (op == "sqrt") return unary<T, [](T a) { return std::sqrt(a); }>;
  if (op == "rsqrt") return unary<T, [](T a) { return T(1.0 / std::sqrt(double(a))); }>;
  if (op == "rcp") return unary<T, [](T a) { return T(1) / a; }>;
  if (op == "ex2") return unary<T, [](T a) { return std::exp2(a); }>;
  if (op == "lg2") return unary<T, [](T a) { return std::log2(a); }>;
  if (op == "sin") return unary<T, [](T a) { return std::sin(a); }>;
  if (op == "cos") return unary<T, [](T a) { return std::cos(a); }>;
  if (op == "tanh") return unary<T, [](T a) { return std::tanh(a); }>;
  return nullptr;
}

int rounding_of(const Opcode& o) {
  if (o.has("rz") || o.has("rzi")) return 1;
  if (o.has("rm") || o.has("rmi")) return 2;
  if (o.has("rp") || o.has("rpi")) return 3;
  return 0;
}

bool select_compare(Insn& insn, const Opcode& o, size_t n) {
  for (int c = 0; c < 14; ++c) {
    if (o.part[1] == kCompareNames[c] || (c < 6 && o.part[1] == kUnsignedNames[c])) {
      insn.mode = static_cast<u8>(c);
      const bool combines = o.has("and") || o.has("or");
      if (o.has("and")) insn.mode |= 16;
      if (o.has("or")) insn.mode |= 32;
      return !o.has("xor") && n == (combines ? 4u : 3u);
    }
  }
  return false;
}


void convert_pack(Warp& w, const Insn& i, u32 mask) {  // cvt.rn.{bf16x2,f16x2}.f32 d, hi, lo
  u32* d = lanes<u32>(w, i.op[0]);
  const float *hi = lanes<float>(w, i.op[1]), *lo = lanes<float>(w, i.op[2]);
  for_lanes(mask, [&](int l) {
    d[l] = i.mode ? u32(to_bfloat(hi[l])) << 16 | to_bfloat(lo[l]) : u32(to_half(hi[l])) << 16 | to_half(lo[l]);
  });
}
void move_pack(Warp& w, const Insn& i, u32 mask) {  // mov.b32 d, {a, b}
  const int half = i.op[1].width * 8;
  for_lanes(mask, [&](int l) { write_any(w, i.op[0], l, read_any(w, i.op[1], l) | read_any(w, i.op[2], l) << half); });
}
void move_unpack(Warp& w, const Insn& i, u32 mask) {  // mov.b32 {a, b}, d
  const int half = i.op[0].width * 8;
  for_lanes(mask, [&](int l) {
    const u64 v = read_any(w, i.op[2], l);
    write_any(w, i.op[0], l, v);
    write_any(w, i.op[1], l, v >> half);
  });
}
void move(Warp& w, const Insn& i, u32 mask) {
  if (i.count == 2) return i.op[0].width == 8 ? copy<u64>(w, i, mask) : i.op[0].width == 4 ? copy<u32>(w, i, mask) : copy<u16>(w, i, mask);
  return i.op[0].width > i.op[2].width || (i.op[0].width > i.op[1].width) ? move_pack(w, i, mask) : move_unpack(w, i, mask);
}
void address_convert(Warp& w, const Insn& i, u32 mask) {  // mode 0 to generic, 1 from generic
  u64 *d = lanes<u64>(w, i.op[0]), *a = lanes<u64>(w, i.op[1]);
  for_lanes(mask, [&](int l) { d[l] = i.space != Space::kShared ? a[l] : i.mode ? a[l] - kSharedWindow : a[l] + kSharedWindow; });
}

}  // namespace

bool select_arithmetic(Insn& insn, const Opcode& o, size_t n) {
  const std::string_view op = o.part[0], type = o.type();
  if (type == "pred") {
    if (op == "mov") insn.run = predicate_constant;
    if (op == "and") insn.run = predicate_op<[](u32 a, u32 b) { return a & b; }>;
    if (op == "or") insn.run = predicate_op<[](u32 a, u32 b) { return a | b; }>;
    if (op == "xor") insn.run = predicate_op<[](u32 a, u32 b) { return a ^ b; }>;
    if (op == "not") insn.run = predicate_op<[](u32 a, u32) { return ~a; }>;
    return insn.run;
  }
  if (op == "mov") return insn.run = move, insn.count = static_cast<u8>(n), n <= 3;
  if (op == "cvta") {
    insn.mode = o.has("to");
    if (o.has("local")) return false;
    if (o.has("shared")) insn.space = Space::kShared;
    return insn.run = address_convert;
  }
  if (op == "cvt") {
    if (n == 3) return insn.mode = o.has("bf16x2"), insn.run = convert_pack, o.has("rn") && (o.has("bf16x2") || o.has("f16x2"));
    const Kind from = kind_of(type), to = kind_of(o.part[o.part.size() - 2]);
    if (from == kNoKind || to == kNoKind || o.has("relu")) return false;
    const bool integral = o.has("rni") || o.has("rzi") || o.has("rmi") || o.has("rpi");
    const int r = rounding_of(o);
    if (to >= kF16 && r && !integral) return false;  // directed rounding to a float
    if (o.has("sat") && to < kF16) return false;
    insn.count = from, insn.bytes = to;
    insn.mode = static_cast<u8>(r | (integral && to >= kF16 ? 4 : 0) | (o.has("sat") ? 8 : 0));
    return insn.run = convert;
  }
  if (op == "setp" && !select_compare(insn, o, n)) return false;
  if ((op == "mul" || op == "mad") && o.has("wide")) {
    insn.mode = op == "mad";
    if (type == "s32") insn.run = multiply_wide<s32, s64>;
    if (type == "u32") insn.run = multiply_wide<u32, u64>;
    if (type == "s16") insn.run = multiply_wide<s16, s32>;
    if (type == "u16") insn.run = multiply_wide<u16, u32>;
    return insn.run;
  }
  if (op == "popc" && type == "b32") return insn.run = unary<u32, [](u32 a) { return u32(std::popcount(a)); }>;
  if (op == "clz" && type == "b32") return insn.run = unary<u32, [](u32 a) { return u32(std::countl_zero(a)); }>;
  if (op == "brev" && type == "b32") return insn.run = unary<u32, [](u32 a) { return bit_reverse(a); }>;
  const bool hi = o.has("hi");
  if (type == "f32") insn.mode = op == "fma" ? static_cast<u8>(rounding_of(o)) : insn.mode, insn.run = float_handler<float>(op, o);
  if (type == "f64") insn.mode = op == "fma" ? static_cast<u8>(rounding_of(o)) : insn.mode, insn.run = float_handler<double>(op, o);
  if (o.has("sat") && type[0] != 'f') return false;
  if (type == "s16") insn.run = integer_handler<s16>(op, hi);
  if (type == "u16" || type == "b16") insn.run = integer_handler<u16>(op, hi);
  if (type == "s32") insn.run = integer_handler<s32>(op, hi);
  if (type == "u32" || type == "b32") insn.run = integer_handler<u32>(op, hi);
  if (type == "s64") insn.run = integer_handler<s64>(op, hi);
  if (type == "u64" || type == "b64") insn.run = integer_handler<u64>(op, hi);
  return insn.run;
}

bool select_handler(Insn& insn, const Opcode& opcode, size_t num_operands) {
  return select_warp(insn, opcode, num_operands) || select_memory(insn, opcode, num_operands) ||
         select_arithmetic(insn, opcode, num_operands);
}

}  // namespace simgpu
