// Single and double precision. Compiled with -frounding-math: the directed roundings run under the
// processor's.
#include <algorithm>
#include <cmath>

#include "exec/real.h"
#include "exec/warp.h"

namespace simgpu {
namespace {

struct Add {
  template <class T>
  static T apply(T a, T b) {
    return a + b;
  }
};
struct Sub {
  template <class T>
  static T apply(T a, T b) {
    return a - b;
  }
};
struct Mul {
  template <class T>
  static T apply(T a, T b) {
    return a * b;
  }
};
struct Div {
  template <class T>
  static T apply(T a, T b) {
    return a / b;
  }
};
struct Fma {
  static float apply(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double apply(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
// The number where one operand is NaN; -0 is below +0.
struct Min {
  template <class T>
  static T apply(T a, T b) {
    if (std::isnan(a)) return std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : b;
    if (std::isnan(b)) return a;
    return a < b ? a : b < a ? b : std::signbit(a) ? a : b;
  }
};
struct Max {
  template <class T>
  static T apply(T a, T b) {
    if (std::isnan(a)) return std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : b;
    if (std::isnan(b)) return a;
    return a > b ? a : b > a ? b : std::signbit(a) ? b : a;
  }
};
template <class Op>
struct PropagateNan {
  template <class T>
  static T apply(T a, T b) {
    return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : Op::apply(a, b);
  }
};
struct Abs {
  template <class T>
  static T apply(T a) {
    return std::fabs(a);
  }
};
struct Neg {
  template <class T>
  static T apply(T a) {
    return -a;
  }
};
struct Sqrt {
  template <class T>
  static T apply(T a) {
    return std::sqrt(a);
  }
};
struct Reciprocal {
  template <class T>
  static T apply(T a) {
    return T(1) / a;
  }
};
struct ReciprocalSqrt {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(1 / std::sqrt(static_cast<double>(a)));
  }
};
// The approximations round the exact result: inside every documented bound.
struct Exp2 {
  static float apply(float a) { return static_cast<float>(std::exp2(static_cast<double>(a))); }
};
struct Log2 {
  static float apply(float a) { return static_cast<float>(std::log2(static_cast<double>(a))); }
};
struct Sin {
  static float apply(float a) { return static_cast<float>(std::sin(static_cast<double>(a))); }
};
struct Cos {
  static float apply(float a) { return static_cast<float>(std::cos(static_cast<double>(a))); }
};
struct Tanh {
  static float apply(float a) { return static_cast<float>(std::tanh(static_cast<double>(a))); }
};
struct CopySign {
  template <class T>
  static T apply(T a, T b) {
    return std::copysign(b, a);
  }
};  // a's sign on b

// Modifiers, by template so that the plain instruction stays a plain loop.
template <class Op, bool kFlush, bool kSaturate>
struct Modified {
  template <class T, class... More>
  static T apply(T a, More... more) {
    T r = kFlush ? Op::apply(flush(a), flush(more)...) : Op::apply(a, more...);
    if (kFlush) r = flush(r);
    return kSaturate ? saturate(r) : r;
  }
};

class RoundingMode {
 public:
  explicit RoundingMode(u8 mode) : before_(std::fegetround()) {
    constexpr int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    std::fesetround(kModes[mode]);
  }
  ~RoundingMode() { std::fesetround(before_); }
  RoundingMode(const RoundingMode&) = delete;
  RoundingMode& operator=(const RoundingMode&) = delete;

 private:
  int before_;
};

template <class Op, class T, int kSources>
void plain(Warp& w, const Insn& i, u32 mask) {
  if constexpr (kSources == 1) unary<Op, T>(w, i, mask);
  if constexpr (kSources == 2) binary<Op, T>(w, i, mask);
  if constexpr (kSources == 3) ternary<Op, T>(w, i, mask);
}
template <class Op, class T, int kSources>
__attribute__((noinline)) void directed(Warp& w, const Insn& i, u32 mask) {
  const RoundingMode mode(i.mode);
  plain<Op, T, kSources>(w, i, mask);
}

template <class Op, int kSources, bool kDirected>
Handler choose_modified(const Opcode& o, Insn& insn) {
  const bool f64 = o.type() == "f64", ftz = o.has("ftz"), sat = o.has("sat");
  insn.mode = o.has("rz") ? 1 : o.has("rm") ? 2 : o.has("rp") ? 3 : 0;
  if constexpr (kDirected) {
    if (insn.mode != 0) {
      if (f64) return directed<Op, double, kSources>;
      if (ftz && sat) return directed<Modified<Op, true, true>, float, kSources>;
      if (ftz) return directed<Modified<Op, true, false>, float, kSources>;
      if (sat) return directed<Modified<Op, false, true>, float, kSources>;
      return directed<Op, float, kSources>;
    }
  }
  if (f64) return plain<Op, double, kSources>;
  if (ftz && sat) return plain<Modified<Op, true, true>, float, kSources>;
  if (ftz) return plain<Modified<Op, true, false>, float, kSources>;
  if (sat) return plain<Modified<Op, false, true>, float, kSources>;
  return plain<Op, float, kSources>;
}
// Those that exist for f32 alone.
template <class Op>
Handler choose_f32(const Opcode& o) {
  if (o.type() != "f32") return nullptr;
  return o.has("ftz") ? plain<Modified<Op, true, false>, float, 1> : plain<Op, float, 1>;
}

// Class tests: bit by bit of mode: finite, infinite, number, not-a-number, normal, subnormal.
template <class T>
void test_property(Warp& w, const Insn& i, u32 mask) {
  const T* a = w.lanes<T>(i.op[1]);
  u32 r = 0;
  for (int l = 0; l < 32; ++l) {
    const int c = std::fpclassify(a[l]);
    const bool yes[] = {c != FP_NAN && c != FP_INFINITE,
                        c == FP_INFINITE,
                        c != FP_NAN,
                        c == FP_NAN,
                        c == FP_NORMAL,
                        c == FP_SUBNORMAL};
    r |= u32{yes[i.mode]} << l;
  }
  u32& d = w.predicate(i.op[0]);
  d = (d & ~mask) | (r & mask);
}

}  // namespace

bool select_float(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view name = o.name(), type = o.type();
  if (type != "f32" && type != "f64") return false;
  const u32 width = type == "f64" ? 8 : 4;
  insn.category = width == 8 ? InstructionClass::kDouble : InstructionClass::kFloat;
  if (name == "testp") {
    constexpr std::string_view kTests[] = {"finite",     "infinite", "number",
                                           "notanumber", "normal",   "subnormal"};
    const auto found = std::find(std::begin(kTests), std::end(kTests), o.part(1));
    if (found == std::end(kTests)) return false;
    insn.mode = static_cast<u8>(found - std::begin(kTests));
    insn.op[0] = d.result(args.at(0), 0);
    insn.op[1] = d.value(args.at(1), width);
    insn.run = width == 8 ? test_property<double> : test_property<float>;
    return true;
  }
  size_t sources = 2;
  Handler run = nullptr;
  const bool nan = o.has("NaN");
  if (name == "add") run = choose_modified<Add, 2, true>(o, insn);
  if (name == "sub") run = choose_modified<Sub, 2, true>(o, insn);
  if (name == "mul") run = choose_modified<Mul, 2, true>(o, insn);
  if (name == "div") run = choose_modified<Div, 2, true>(o, insn);
  if (name == "min")
    run =
        nan ? choose_modified<PropagateNan<Min>, 2, false>(o, insn) : choose_modified<Min, 2, false>(o, insn);
  if (name == "max")
    run =
        nan ? choose_modified<PropagateNan<Max>, 2, false>(o, insn) : choose_modified<Max, 2, false>(o, insn);
  if (name == "copysign") run = width == 8 ? binary<CopySign, double> : binary<CopySign, float>;
  if (name == "fma" || name == "mad") sources = 3, run = choose_modified<Fma, 3, true>(o, insn);
  if (run == nullptr) {
    sources = 1;
    if (name == "abs") run = choose_modified<Abs, 1, false>(o, insn);
    if (name == "neg") run = choose_modified<Neg, 1, false>(o, insn);
    if (run == nullptr) insn.category = width == 8 ? InstructionClass::kDouble : InstructionClass::kSpecial;
    if (name == "sqrt") run = choose_modified<Sqrt, 1, true>(o, insn);
    if (name == "rcp") run = choose_modified<Reciprocal, 1, true>(o, insn);
    if (name == "rsqrt") run = choose_modified<ReciprocalSqrt, 1, false>(o, insn);
    if (name == "ex2") run = choose_f32<Exp2>(o);
    if (name == "lg2") run = choose_f32<Log2>(o);
    if (name == "sin") run = choose_f32<Sin>(o);
    if (name == "cos") run = choose_f32<Cos>(o);
    if (name == "tanh") run = choose_f32<Tanh>(o);
  }
  if (run == nullptr) return false;
  resolve(d, insn, args, width, sources);
  insn.run = run;
  return true;
}

}  // namespace simgpu
