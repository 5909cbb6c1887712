// cvt. Compiled with -frounding-math: directed roundings to f32 run under the processor's.
#include <algorithm>
#include <cmath>

#include "exec/real.h"
#include "exec/warp.h"

namespace simgpu {
namespace {

enum class Kind : u8 { kSigned, kUnsigned, kHalf, kBfloat, kFloat, kDouble };
Kind kind_of(std::string_view type) {
  if (type == "f16") return Kind::kHalf;
  if (type == "bf16") return Kind::kBfloat;
  if (type == "f32") return Kind::kFloat;
  if (type == "f64") return Kind::kDouble;
  return type[0] == 's' ? Kind::kSigned : Kind::kUnsigned;
}
bool is_real(Kind k) { return k >= Kind::kHalf; }

// imm of a cvt
struct Conversion {
  Kind from, to;
  u8 from_bytes, to_bytes;        // of the types
  u8 from_register, to_register;  // of the registers
  Rounding rounding;
  bool to_integer, flush, saturate, relu;
};

i64 read_integer(const std::byte* p, u8 bytes, bool is_signed) {
  u64 bits = 0;
  std::memcpy(&bits, p, bytes);
  if (is_signed && bytes < 8 && (bits >> (8 * bytes - 1) & 1) != 0) bits |= ~u64{0} << (8 * bytes);
  return static_cast<i64>(bits);
}
double read_real(const std::byte* p, const Conversion& c) {
  if (c.from == Kind::kDouble) {
    double x;
    std::memcpy(&x, p, 8);
    return x;
  }
  u32 bits = 0;
  std::memcpy(&bits, p, c.from_bytes);
  if (c.from == Kind::kHalf) return widen(Half{static_cast<u16>(bits)});
  if (c.from == Kind::kBfloat) return widen(Bfloat{static_cast<u16>(bits)});
  const float x = std::bit_cast<float>(bits);
  return c.flush ? flush(x) : x;
}
double to_integral(double x, Rounding r) {
  switch (r) {
    case Rounding::kZero:
      return std::trunc(x);
    case Rounding::kDown:
      return std::floor(x);
    case Rounding::kUp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);  // called under round-to-nearest
  }
}
// NaN becomes 0, the rest is clamped.
u64 clamp_real(double x, u8 bytes, bool is_signed) {
  if (std::isnan(x)) return 0;
  const int bits = 8 * bytes - (is_signed ? 1 : 0);
  const double limit = std::scalbn(1.0, bits);
  if (x >= limit) return bits == 64 ? ~u64{0} : (u64{1} << bits) - 1;
  if (is_signed) return x < -limit ? ~u64{0} << bits : static_cast<u64>(static_cast<i64>(x));
  return x <= 0 ? 0 : static_cast<u64>(x);
}
u64 clamp_integer(i64 x, const Conversion& c) {
  const bool negative = c.from == Kind::kSigned && x < 0;
  const int bits = 8 * c.to_bytes - (c.to == Kind::kSigned ? 1 : 0);
  if (negative) {
    if (c.to == Kind::kUnsigned) return 0;
    return bits < 63 ? static_cast<u64>(std::max<i64>(x, -(i64{1} << bits))) : static_cast<u64>(x);
  }
  return bits == 64 ? static_cast<u64>(x) : std::min(static_cast<u64>(x), (u64{1} << bits) - 1);
}
// A double that the rounding mode of the processor, if directed, has not yet touched.
float round_to_float(double x, Rounding r) {
  constexpr int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
  if (r == Rounding::kNearest) return static_cast<float>(x);
  const int before = std::fegetround();
  std::fesetround(kModes[static_cast<int>(r)]);
  volatile double held = x;
  const float rounded = static_cast<float>(held);
  std::fesetround(before);
  return rounded;
}
u64 write_real(double x, const Conversion& c) {
  if (c.saturate) x = saturate(x);
  if (c.relu && !(x > 0) && !std::isnan(x)) x = 0;
  if (c.to == Kind::kDouble) return std::bit_cast<u64>(x);
  if (c.to == Kind::kHalf) return narrow<Half>(x, c.rounding).bits;
  if (c.to == Kind::kBfloat) return narrow<Bfloat>(x, c.rounding).bits;
  const float f = round_to_float(x, c.rounding);
  return std::bit_cast<u32>(c.flush ? flush(f) : f);
}
// 64-bit integers do not fit a double: to odd, so that the rounding that follows is the only one.
double integer_to_double(i64 x, const Conversion& c) {
  const bool negative = c.from == Kind::kSigned && x < 0;
  u64 magnitude = negative ? 0 - static_cast<u64>(x) : static_cast<u64>(x);
  if (c.to == Kind::kDouble) {  // its own rounding
    const double d = negative ? -static_cast<double>(magnitude) : static_cast<double>(magnitude);
    return d;
  }
  const int excess = std::max(0, 11 - std::countl_zero(magnitude));
  if (excess > 0) {
    const u64 lost = magnitude & ((u64{1} << excess) - 1);
    magnitude = (magnitude >> excess | (lost != 0)) << excess;
  }
  const double d = static_cast<double>(magnitude);
  return negative ? -d : d;
}

void convert(Warp& w, const Insn& i, u32 mask) {
  Conversion c;
  std::memcpy(&c, &w.frame->function->operands[i.extra], sizeof c);
  for_lanes(mask, [&](int l) {
    const std::byte* from = w.file + i.op[1] + l * c.from_register;
    u64 bits;
    if (!is_real(c.from)) {
      const i64 x = read_integer(from, c.from_bytes, c.from == Kind::kSigned);
      if (is_real(c.to))
        bits = write_real(integer_to_double(x, c), c);
      else
        bits = c.saturate ? clamp_integer(x, c) : static_cast<u64>(x);
    } else {
      double x = read_real(from, c);
      if (c.to_integer) x = to_integral(x, c.rounding);
      bits = is_real(c.to) ? write_real(x, c) : clamp_real(x, c.to_bytes, c.to == Kind::kSigned);
    }
    const u64 extended = is_real(c.to)
                             ? bits
                             : static_cast<u64>(read_integer(reinterpret_cast<const std::byte*>(&bits),
                                                             c.to_bytes, c.to == Kind::kSigned));
    std::memcpy(w.file + i.op[0] + l * c.to_register, &extended, c.to_register);
  });
}

// The frequent ones, as plain loops.
template <class To, class From>
void convert_plain(Warp& w, const Insn& i, u32 mask) {
  const From* a = w.lanes<From>(i.op[1]);
  map(w.lanes<To>(i.op[0]), mask, [=](int l) { return static_cast<To>(a[l]); });
}
template <class T>
void widen_half(Warp& w, const Insn& i, u32 mask) {
  const u16* a = w.lanes<u16>(i.op[1]);
  map(w.lanes<float>(i.op[0]), mask, [=](int l) { return widen(T{a[l]}); });
}
void narrow_bfloat(Warp& w, const Insn& i, u32 mask) {
  const float* a = w.lanes<float>(i.op[1]);
  map(w.lanes<u16>(i.op[0]), mask, [=](int l) { return to_bfloat(a[l]).bits; });
}
Handler frequent(std::string_view to, std::string_view from, const Opcode& o) {
  if (o.parts.size() == 3) {
    if (to == "s64" && from == "s32") return convert_plain<i64, i32>;
    if (to == "u64" && from == "u32") return convert_plain<u64, u32>;
    if (to == "u32" && from == "u64") return convert_plain<u32, u64>;
    if (to == "u32" && from == "u16") return convert_plain<u32, u16>;
    if (to == "u16" && from == "u32") return convert_plain<u16, u32>;
    if (to == "f32" && from == "f16") return widen_half<Half>;
    if (to == "f32" && from == "bf16") return widen_half<Bfloat>;
    if (to == "f64" && from == "f32") return convert_plain<double, float>;
  }
  if (o.parts.size() == 4 && o.parts[1] == "rn") {
    if (to == "f32" && from == "s32") return convert_plain<float, i32>;
    if (to == "f32" && from == "u32") return convert_plain<float, u32>;
    if (to == "f32" && from == "f64") return convert_plain<float, double>;
    if (to == "bf16" && from == "f32") return narrow_bfloat;
  }
  return nullptr;
}

// cvt.rn{.relu}.{f16x2,bf16x2}.f32 d, a, b: a in the upper half.
template <class T>
void pack_halves(Warp& w, const Insn& i, u32 mask) {
  const float *a = w.lanes<float>(i.op[1]), *b = w.lanes<float>(i.op[2]);
  const auto rounding = static_cast<Rounding>(i.mode & 7);
  const bool relu = (i.mode & 8) != 0;
  const auto half = [=](float x) -> u32 {
    if (relu && x <= 0) x = 0;
    if constexpr (std::is_same_v<T, Bfloat>) {
      if (rounding == Rounding::kNearest) return to_bfloat(x).bits;
    }
    return narrow<T>(x, rounding).bits;
  };
  for_lanes(mask, [&](int l) { w.lanes<u32>(i.op[0])[l] = half(a[l]) << 16 | half(b[l]); });
}
// 10 bits of mantissa, ties away from zero.
void to_tf32(Warp& w, const Insn& i, u32 mask) {
  const u32* a = w.lanes<u32>(i.op[1]);
  map(w.lanes<u32>(i.op[0]), mask, [=](int l) {
    const u32 bits = a[l];
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
  });
}

Rounding rounding_of(const Opcode& o) {
  if (o.has("rz") || o.has("rzi")) return Rounding::kZero;
  if (o.has("rm") || o.has("rmi")) return Rounding::kDown;
  if (o.has("rp") || o.has("rpi")) return Rounding::kUp;
  return o.has("rna") ? Rounding::kAway : Rounding::kNearest;
}

}  // namespace

bool select_convert(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  if (o.name() != "cvt" || o.parts.size() < 3) return false;
  insn.category = InstructionClass::kConversion;
  const std::string_view to = o.parts[o.parts.size() - 2], from = o.type();
  if (to == "f16x2" || to == "bf16x2") {
    if (from != "f32" || args.size() != 3) return false;
    insn.mode = static_cast<u8>(static_cast<u8>(rounding_of(o)) | (o.has("relu") ? 8 : 0));
    resolve(d, insn, args, 4, 2);
    insn.run = to == "f16x2" ? pack_halves<Half> : pack_halves<Bfloat>;
    return true;
  }
  if (to == "tf32") {
    if (!o.has("rna") || from != "f32") return false;
    resolve(d, insn, args, 4, 1);
    insn.run = to_tf32;
    return true;
  }
  const u32 to_bytes = static_cast<u32>(type_bytes(to)), from_bytes = static_cast<u32>(type_bytes(from));
  if (to_bytes == 0 || from_bytes == 0 || args.size() != 2) return false;
  insn.op[0] = d.result(args[0], to_bytes);
  insn.op[1] = d.value(args[1], from_bytes);
  const u32 to_register = args[0].word == "_" ? to_bytes : d.width_of(args[0].word);
  const u32 from_width = d.width_of(args[1].word),
            from_register = from_width == kNone ? from_bytes : from_width;
  if (to_register == to_bytes && from_register == from_bytes) insn.run = frequent(to, from, o);
  if (insn.run != nullptr) return true;
  const bool integral = o.has("rni") || o.has("rzi") || o.has("rmi") || o.has("rpi");
  const Conversion c{kind_of(from),
                     kind_of(to),
                     static_cast<u8>(from_bytes),
                     static_cast<u8>(to_bytes),
                     static_cast<u8>(from_register),
                     static_cast<u8>(to_register),
                     rounding_of(o),
                     integral,
                     o.has("ftz"),
                     o.has("sat"),
                     o.has("relu")};
  u32 words[3] = {};
  static_assert(sizeof c <= sizeof words);
  std::memcpy(words, &c, sizeof c);
  d.add_operands(insn, words);
  insn.run = convert;
  return true;
}

}  // namespace simgpu
