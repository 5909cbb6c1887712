// Integer and bit instructions.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "exec/warp.h"

namespace simgpu {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
struct Twice;
template <>
struct Twice<u16> {
  using type = u32;
};
template <>
struct Twice<i16> {
  using type = i32;
};
template <>
struct Twice<u32> {
  using type = u64;
};
template <>
struct Twice<i32> {
  using type = i64;
};
template <>
struct Twice<u64> {
  using type = unsigned __int128;
};
template <>
struct Twice<i64> {
  using type = __int128;
};
template <class T>
constexpr int kBits = 8 * sizeof(T);

struct Add {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Unsigned<T>(a) + Unsigned<T>(b));
  }
};
struct Sub {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Unsigned<T>(a) - Unsigned<T>(b));
  }
};
struct AddSaturated {
  static i32 apply(i32 a, i32 b) {
    return static_cast<i32>(std::clamp<i64>(i64{a} + b, INT32_MIN, INT32_MAX));
  }
};
struct SubSaturated {
  static i32 apply(i32 a, i32 b) {
    return static_cast<i32>(std::clamp<i64>(i64{a} - b, INT32_MIN, INT32_MAX));
  }
};
struct MulLow {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(u64(Unsigned<T>(a)) * u64(Unsigned<T>(b)));
  }
};
struct MulHigh {
  template <class T>
  static T apply(T a, T b) {
    using W = typename Twice<T>::type;
    return static_cast<T>((W(a) * W(b)) >> kBits<T>);
  }
};
struct MadLow {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(MulLow::apply(a, b), c);
  }
};
struct MadHigh {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(MulHigh::apply(a, b), c);
  }
};
struct SumAbsoluteDifference {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(c, a < b ? Sub::apply(b, a) : Sub::apply(a, b));
  }
};
// Division by zero is unspecified; the hardware gives all ones.
struct Div {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Sub::apply(T(0), a);
    return static_cast<T>(a / b);
  }
};
struct Rem {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return T(0);
    return static_cast<T>(a % b);
  }
};
struct Min {
  template <class T>
  static T apply(T a, T b) {
    return a < b ? a : b;
  }
};
struct Max {
  template <class T>
  static T apply(T a, T b) {
    return a > b ? a : b;
  }
};
struct Abs {
  template <class T>
  static T apply(T a) {
    return a < 0 ? Sub::apply(T(0), a) : a;
  }
};
struct Neg {
  template <class T>
  static T apply(T a) {
    return Sub::apply(T(0), a);
  }
};
struct And {
  template <class T>
  static T apply(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <class T>
  static T apply(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <class T>
  static T apply(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(~a);
  }
};
struct LogicalNot {
  template <class T>
  static T apply(T a) {
    return a == 0;
  }
};
struct Popcount {
  template <class T>
  static u32 apply(T a) {
    return static_cast<u32>(std::popcount(a));
  }
};
struct LeadingZeros {
  template <class T>
  static u32 apply(T a) {
    return static_cast<u32>(std::countl_zero(a));
  }
};
struct Reverse {
  template <class T>
  static T apply(T a) {
    T r = 0;
    for (int i = 0; i < kBits<T>; ++i) r |= (a >> i & 1) << (kBits<T> - 1 - i);
    return r;
  }
};
struct ShiftLeft {
  template <class T>
  static T apply(T a, u32 n) {
    return n >= kBits<T> ? T(0) : static_cast<T>(a << n);
  }
};
struct ShiftRight {
  template <class T>
  static T apply(T a, u32 n) {
    if (n >= kBits<T>) return a < 0 ? static_cast<T>(-1) : T(0);
    return static_cast<T>(a >> n);
  }
};
template <bool kLeft, bool kClamp>
struct Funnel {
  static u32 apply(u32 low, u32 high, u32 n) {
    n = kClamp ? std::min(n, 32u) : n & 31;
    const u64 both = u64{high} << 32 | low;
    return static_cast<u32>(kLeft ? (both << n) >> 32 : both >> n);
  }
};

template <class Op, class T>
void shift(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  const u32* n = w.lanes<u32>(i.op[2]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) { return Op::apply(a[l], n[l]); });
}
template <class Op, class T>
void to_u32(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  map(w.lanes<u32>(i.op[0]), mask, [=](int l) { return Op::apply(a[l]); });
}
template <class T, bool kAdd>
void multiply_wide(Warp& w, const Insn& i, u32 mask) {
  using W = typename Twice<T>::type;
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]);
  const W* c = kAdd ? w.lanes<W>(i.op[3]) : nullptr;
  map(w.lanes<W>(i.op[0]), mask, [=](int l) {
    const W product = static_cast<W>(W(a[l]) * W(b[l]));
    return kAdd ? Add::apply(product, c[l]) : product;
  });
}
template <class Op>
void predicates(Warp& w, const Insn& i, u32 mask) {
  const u32 value = Op::apply(w.predicate(i.op[1]), i.op[2] == kNone ? 0 : w.predicate(i.op[2]));
  u32& d = w.predicate(i.op[0]);
  d = (d & ~mask) | (value & mask);
}
struct NotPredicate {
  static u32 apply(u32 a, u32) { return ~a; }
};

void lop3(Warp& w, const Insn& i, u32 mask) {
  const u32 *a = w.lanes<u32>(i.op[1]), *b = w.lanes<u32>(i.op[2]), *c = w.lanes<u32>(i.op[3]);
  const u32 table = static_cast<u32>(i.imm);
  map(w.lanes<u32>(i.op[0]), mask, [=](int l) {
    u32 r = 0;
    for (u32 k = 0; k < 8; ++k) {
      const u32 all = 0u - (table >> k & 1);
      r |= all & (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    }
    return r;
  });
}

// Default mode: each selector nibble names one of eight bytes, its top bit replicates the byte's sign.
void permute(Warp& w, const Insn& i, u32 mask) {
  const u32 *a = w.lanes<u32>(i.op[1]), *b = w.lanes<u32>(i.op[2]), *c = w.lanes<u32>(i.op[3]);
  map(w.lanes<u32>(i.op[0]), mask, [=](int l) {
    const u64 both = u64{b[l]} << 32 | a[l];
    u32 r = 0;
    for (u32 k = 0; k < 4; ++k) {
      const u32 selector = c[l] >> (4 * k) & 15;
      const u32 byte = static_cast<u32>(both >> (8 * (selector & 7))) & 255;
      r |= (selector & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * k);
    }
    return r;
  });
}

template <class T>
void extract_field(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  const u32 *position = w.lanes<u32>(i.op[2]), *length = w.lanes<u32>(i.op[3]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) {
    const u32 p = position[l] & 255, n = length[l] & 255;
    const u32 top = std::min<u32>(p + n - 1, kBits<T> - 1);
    const bool sign = std::is_signed_v<T> && n > 0 && (Unsigned<T>(a[l]) >> top & 1) != 0;
    Unsigned<T> r = p < kBits<T> ? Unsigned<T>(a[l]) >> p : Unsigned<T>(0);
    const u32 valid = n == 0 ? 0 : p >= kBits<T> ? 0 : std::min<u32>(n, kBits<T> - p);
    const Unsigned<T> keep = valid >= kBits<T> ? ~Unsigned<T>(0) : (Unsigned<T>(1) << valid) - 1;
    r &= keep;
    return static_cast<T>(sign ? r | ~keep : r);
  });
}
template <class T>
void insert_field(Warp& w, const Insn& i, u32 mask) {
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]);
  const u32 *position = w.lanes<u32>(i.op[3]), *length = w.lanes<u32>(i.op[4]);
  map(w.lanes<T>(i.op[0]), mask, [=](int l) {
    const u32 p = position[l] & 255, n = length[l] & 255;
    if (p >= kBits<T>) return b[l];
    const T ones = n >= kBits<T> ? ~T(0) : (T(1) << n) - 1, field = static_cast<T>(ones << p);
    return static_cast<T>((b[l] & ~field) | (a[l] << p & field));
  });
}
// Position of the most significant bit that differs from the sign; with shiftamt the shift that brings it to
// the top.
template <class T, bool kShift>
void find_bit(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  map(w.lanes<u32>(i.op[0]), mask, [=](int l) {
    const Unsigned<T> x = static_cast<Unsigned<T>>(a[l] < 0 ? ~a[l] : a[l]);
    if (x == 0) return ~0u;
    const u32 zeros = static_cast<u32>(std::countl_zero(x));
    return kShift ? zeros : kBits<T> - 1 - zeros;
  });
}
template <bool kClamp>
void bit_mask(Warp& w, const Insn& i, u32 mask) {
  const u32 *a = w.lanes<u32>(i.op[1]), *b = w.lanes<u32>(i.op[2]);
  map(w.lanes<u32>(i.op[0]), mask, [=](int l) {
    const u32 p = kClamp ? a[l] : a[l] & 31, n = kClamp ? b[l] : b[l] & 31;
    if (p >= 32 || n == 0) return 0u;
    return (n >= 32 ? ~0u : (1u << n) - 1) << p;
  });
}
template <class A, class B>
void dot4(Warp& w, const Insn& i, u32 mask) {
  const u32 *a = w.lanes<u32>(i.op[1]), *b = w.lanes<u32>(i.op[2]), *c = w.lanes<u32>(i.op[3]);
  map(w.lanes<u32>(i.op[0]), mask, [=](int l) {
    u32 sum = c[l];
    for (int k = 0; k < 4; ++k) sum += static_cast<u32>(i32{A(a[l] >> 8 * k)} * i32{B(b[l] >> 8 * k)});
    return sum;
  });
}
template <class T, bool kSubtract, bool kCarryIn>
void with_carry(Warp& w, const Insn& i, u32 mask) {
  using U = Unsigned<T>;
  const U *a = w.lanes<U>(i.op[1]), *b = w.lanes<U>(i.op[2]);
  U* d = w.lanes<U>(i.op[0]);
  u32& carry = w.predicate(i.op[3]);
  for_lanes(mask, [&](int l) {
    const U in = kCarryIn ? carry >> l & 1 : 0;
    const unsigned __int128 r =
        kSubtract ? (unsigned __int128)a[l] - b[l] - in : (unsigned __int128)a[l] + b[l] + in;
    d[l] = static_cast<U>(r);
    carry = (carry & ~(1u << l)) | (static_cast<u32>(r >> kBits<U>) & 1) << l;
  });
}
// mad.cc and madc: half of a * b, plus c, plus the carry.
template <class T, class Half, bool kCarryIn>
void multiply_with_carry(Warp& w, const Insn& i, u32 mask) {
  using U = Unsigned<T>;
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]), *c = w.lanes<T>(i.op[3]);
  U* d = w.lanes<U>(i.op[0]);
  u32& carry = w.predicate(i.op[4]);
  for_lanes(mask, [&](int l) {
    const U in = kCarryIn ? carry >> l & 1 : 0;
    const unsigned __int128 r =
        (unsigned __int128)static_cast<U>(Half::apply(a[l], b[l])) + static_cast<U>(c[l]) + in;
    d[l] = static_cast<U>(r);
    carry = (carry & ~(1u << l)) | (static_cast<u32>(r >> kBits<U>) & 1) << l;
  });
}

template <class F>
Handler by_integer_type(std::string_view type, F&& f) {
  if (type == "u32") return f(u32{});
  if (type == "s32") return f(i32{});
  if (type == "u64") return f(u64{});
  if (type == "s64") return f(i64{});
  if (type == "u16") return f(u16{});
  if (type == "s16") return f(i16{});
  return nullptr;
}
template <class F>
Handler by_bits(u32 bytes, F&& f) {
  return bytes == 2 ? f(u16{}) : bytes == 4 ? f(u32{}) : bytes == 8 ? f(u64{}) : nullptr;
}
template <class Op>
Handler binary_of(std::string_view type) {
  return by_integer_type(type, [](auto t) -> Handler { return binary<Op, decltype(t)>; });
}
template <class Op>
Handler bits_of(u32 bytes) {
  return by_bits(bytes, [](auto t) -> Handler { return binary<Op, decltype(t)>; });
}

bool select_multiply_with_carry(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args,
                                u32 width) {
  const bool in = o.name() == "madc", high = o.has("hi");
  resolve(d, insn, args, width, 3);
  insn.op[4] = d.carry();
  insn.run = by_integer_type(o.type(), [&](auto t) -> Handler {
    using T = decltype(t);
    if (high) return in ? multiply_with_carry<T, MulHigh, true> : multiply_with_carry<T, MulHigh, false>;
    return in ? multiply_with_carry<T, MulLow, true> : multiply_with_carry<T, MulLow, false>;
  });
  return insn.run != nullptr;
}

bool select_carry(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args, u32 width) {
  const std::string_view name = o.name();
  if (name == "mad" || name == "madc") return select_multiply_with_carry(d, insn, o, args, width);
  resolve(d, insn, args, width, 2);
  insn.op[3] = d.carry();
  insn.run = by_bits(width, [&](auto t) -> Handler {
    using T = decltype(t);
    if (name == "add") return with_carry<T, false, false>;
    if (name == "addc") return with_carry<T, false, true>;
    if (name == "sub") return with_carry<T, true, false>;
    return name == "subc" ? with_carry<T, true, true> : nullptr;
  });
  return insn.run != nullptr;
}

bool select_predicate(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view name = o.name();
  insn.category = InstructionClass::kPredicate;
  insn.op[0] = d.result(args.at(0), 0);
  insn.op[1] = d.predicate(args.at(1));
  if (args.size() > 2) insn.op[2] = d.predicate(args[2]);
  insn.run = name == "and"   ? predicates<And>
             : name == "or"  ? predicates<Or>
             : name == "xor" ? predicates<Xor>
             : name == "not" ? predicates<NotPredicate>
                             : nullptr;
  return insn.run != nullptr;
}

}  // namespace

void negate_predicate(Warp& w, const Insn& i, u32 mask) { predicates<NotPredicate>(w, i, mask); }

bool select_integer(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view name = o.name(), type = o.type();
  if (type == "pred")
    return (name == "and" || name == "or" || name == "xor" || name == "not")
           && select_predicate(d, insn, o, args);
  const u32 width = static_cast<u32>(type_bytes(type));
  if (width == 0 || type[0] == 'f' || type.starts_with("bf")) return false;
  if (o.has("cc") || name == "addc" || name == "subc" || name == "madc")
    return select_carry(d, insn, o, args, width);
  const auto choose = [&](Handler handler, size_t sources) {
    if (handler == nullptr) return false;
    resolve(d, insn, args, width, sources);
    insn.run = handler;
    return true;
  };
  if (name == "add") return choose(o.has("sat") ? binary<AddSaturated, i32> : binary_of<Add>(type), 2);
  if (name == "sub") return choose(o.has("sat") ? binary<SubSaturated, i32> : binary_of<Sub>(type), 2);
  if ((name == "mul" || name == "mad") && o.has("wide")) {
    const bool add = name == "mad";
    insn.op[0] = d.result(args.at(0), 2 * width);
    insn.op[1] = d.value(args.at(1), width);
    insn.op[2] = d.value(args.at(2), width);
    if (add) insn.op[3] = d.value(args.at(3), 2 * width);
    const auto wide = [&](auto t) -> Handler {
      using T = decltype(t);
      if constexpr (sizeof(T) < 8) return add ? multiply_wide<T, true> : multiply_wide<T, false>;
      return nullptr;
    };
    insn.run = by_integer_type(type, wide);
    return insn.run != nullptr;
  }
  if (name == "mul") return choose(o.has("hi") ? binary_of<MulHigh>(type) : binary_of<MulLow>(type), 2);
  if (name == "mad") {
    return choose(by_integer_type(type,
                                  [&](auto t) -> Handler {
                                    return o.has("hi") ? ternary<MadHigh, decltype(t)>
                                                       : ternary<MadLow, decltype(t)>;
                                  }),
                  3);
  }
  if (name == "sad")
    return choose(
        by_integer_type(type, [](auto t) -> Handler { return ternary<SumAbsoluteDifference, decltype(t)>; }),
        3);
  if (name == "div") return choose(binary_of<Div>(type), 2);
  if (name == "rem") return choose(binary_of<Rem>(type), 2);
  if (name == "min") return choose(binary_of<Min>(type), 2);
  if (name == "max") return choose(binary_of<Max>(type), 2);
  if (name == "abs")
    return choose(by_integer_type(type, [](auto t) -> Handler { return unary<Abs, decltype(t)>; }), 1);
  if (name == "neg")
    return choose(by_integer_type(type, [](auto t) -> Handler { return unary<Neg, decltype(t)>; }), 1);
  if (name == "and") return choose(bits_of<And>(width), 2);
  if (name == "or") return choose(bits_of<Or>(width), 2);
  if (name == "xor") return choose(bits_of<Xor>(width), 2);
  if (name == "not")
    return choose(by_bits(width, [](auto t) -> Handler { return unary<Not, decltype(t)>; }), 1);
  if (name == "cnot")
    return choose(by_bits(width, [](auto t) -> Handler { return unary<LogicalNot, decltype(t)>; }), 1);
  if (name == "brev")
    return choose(by_bits(width, [](auto t) -> Handler { return unary<Reverse, decltype(t)>; }), 1);
  if (name == "prmt" && o.parts.size() == 2) return choose(permute, 3);
  if (name == "bmsk") return choose(o.has("clamp") ? bit_mask<true> : bit_mask<false>, 2);
  if (name == "lop3") {
    const std::vector<Argument> first(args.begin(), args.end() - 1);
    insn.imm = std::strtoll(std::string(args.back().word).c_str(), nullptr, 0);
    resolve(d, insn, first, width, 3);
    insn.run = lop3;
    return true;
  }
  if (name == "shl" || name == "shr") {
    insn.op[0] = d.result(args.at(0), width);
    insn.op[1] = d.value(args.at(1), width);
    insn.op[2] = d.value(args.at(2), 4);
    insn.run = name == "shl" ? by_bits(width, [](auto t) -> Handler { return shift<ShiftLeft, decltype(t)>; })
               : type[0] == 's'
                   ? by_integer_type(type, [](auto t) -> Handler { return shift<ShiftRight, decltype(t)>; })
                   : by_bits(width, [](auto t) -> Handler { return shift<ShiftRight, decltype(t)>; });
    return insn.run != nullptr;
  }
  if (name == "shf") {
    const bool left = o.has("l"), clamp = o.has("clamp");
    if (!left && !o.has("r")) return false;
    return choose(left ? (clamp ? ternary<Funnel<true, true>, u32> : ternary<Funnel<true, false>, u32>)
                       : (clamp ? ternary<Funnel<false, true>, u32> : ternary<Funnel<false, false>, u32>),
                  3);
  }
  if (name == "popc" || name == "clz" || name == "bfind") {
    insn.op[0] = d.result(args.at(0), 4);
    insn.op[1] = d.value(args.at(1), width);
    if (name == "bfind") {
      const bool shift_amount = o.has("shiftamt");
      insn.run = by_integer_type(type, [&](auto t) -> Handler {
        return shift_amount ? find_bit<decltype(t), true> : find_bit<decltype(t), false>;
      });
    } else {
      insn.run = by_bits(width, [&](auto t) -> Handler {
        return name == "popc" ? to_u32<Popcount, decltype(t)> : to_u32<LeadingZeros, decltype(t)>;
      });
    }
    return insn.run != nullptr;
  }
  if (name == "bfe" || name == "bfi") {
    const bool insert = name == "bfi";
    insn.op[0] = d.result(args.at(0), width);
    insn.op[1] = d.value(args.at(1), width);
    insn.op[2] = d.value(args.at(2), insert ? width : 4);
    insn.op[3] = d.value(args.at(3), 4);
    if (insert) insn.op[4] = d.value(args.at(4), 4);
    insn.run = insert ? by_bits(width, [](auto t) -> Handler { return insert_field<decltype(t)>; })
                      : by_integer_type(type, [](auto t) -> Handler { return extract_field<decltype(t)>; });
    return insn.run != nullptr;
  }
  if (name == "dp4a") {
    const bool a = o.parts[1] == "s32", b = o.parts[2] == "s32";
    return choose(a ? (b ? dot4<int8_t, int8_t> : dot4<int8_t, u8>) : (b ? dot4<u8, int8_t> : dot4<u8, u8>),
                  3);
  }
  return false;
}

}  // namespace simgpu
