// Arithmetic of f16 and bf16, packed and single: all 2^16 values of one operand against others, bit for bit
// with the exact result in integers, rounded once.
#include <cmath>
#include <cstdint>
#include <functional>

#include "support.h"

namespace {

using u16 = uint16_t;
using u32 = uint32_t;
using u128 = unsigned __int128;

struct Format {
  int mantissa, exponent;  // bits
  int bias() const { return (1 << (exponent - 1)) - 1; }
  u16 infinity() const { return static_cast<u16>(((1 << exponent) - 1) << mantissa); }
  bool is_nan(u16 h) const { return (h & 0x7fff) > infinity(); }
  bool is_infinite(u16 h) const { return (h & 0x7fff) == infinity(); }
  u16 flush(u16 h) const { return (h & infinity()) == 0 ? h & 0x8000 : h; }
};
constexpr Format kF16{10, 5}, kBf16{7, 8};
constexpr u16 kNan = 0x7fff;

// A finite number: (-1)^negative * magnitude * 2^exponent.
struct Exact {
  bool negative;
  u128 magnitude;
  int exponent;
};
Exact decode(const Format& f, u16 h) {
  const int e = h >> f.mantissa & ((1 << f.exponent) - 1), m = h & ((1 << f.mantissa) - 1);
  return {h >> 15 != 0, static_cast<u128>(e == 0 ? m : m + (1 << f.mantissa)),
          (e == 0 ? 1 : e) - f.bias() - f.mantissa};
}
Exact product(const Exact& a, const Exact& b) {
  return {a.negative != b.negative, a.magnitude * b.magnitude, a.exponent + b.exponent};
}
// Operands of at most 22 bits. One that lies more than 90 bits below the other's last place keeps only its
// sign, of a last place 90 bits down: no rounding to 11 bits can tell.
Exact sum(Exact a, Exact b) {
  if (a.magnitude == 0 && b.magnitude == 0) return {a.negative && b.negative, 0, 0};
  if (a.magnitude == 0) return b;
  if (b.magnitude == 0) return a;
  if (a.exponent < b.exponent) std::swap(a, b);
  if (a.exponent - b.exponent > 90) b.exponent = a.exponent - 90, b.magnitude = 1;
  a.magnitude <<= a.exponent - b.exponent;
  if (a.negative == b.negative) return {a.negative, a.magnitude + b.magnitude, b.exponent};
  if (a.magnitude == b.magnitude) return {false, 0, 0};  // +0 where the rounding is not downwards
  return a.magnitude > b.magnitude ? Exact{a.negative, a.magnitude - b.magnitude, b.exponent}
                                   : Exact{b.negative, b.magnitude - a.magnitude, b.exponent};
}
// To nearest, ties to even.
u16 round(const Format& f, const Exact& x) {
  const u16 sign = x.negative ? 0x8000 : 0;
  if (x.magnitude == 0) return sign;
  int width = 0;
  for (u128 m = x.magnitude; m != 0; m >>= 1) ++width;
  const int least = 1 - f.bias() - f.mantissa;  // the last place of a subnormal number
  const int place = std::max(least, width - 1 + x.exponent - f.mantissa), shift = place - x.exponent;
  u128 code;
  if (shift <= 0) {
    code = x.magnitude << -shift;
  } else if (shift > width) {
    code = 0;  // below half of the last place
  } else {
    const u128 half = u128{1} << (shift - 1), rest = x.magnitude & (2 * half - 1);
    code = x.magnitude >> shift;
    if (rest > half || (rest == half && (code & 1) != 0)) ++code;
  }
  code += static_cast<u128>(place - least) << f.mantissa;  // the leading bit adds one to the exponent
  return code >= f.infinity() ? sign | f.infinity() : sign | static_cast<u16>(code);
}

u16 fma(const Format& f, u16 a, u16 b, u16 c) {
  const bool negative = (a ^ b) >> 15 != 0;
  if (f.is_nan(a) || f.is_nan(b) || f.is_nan(c)) return kNan;
  if (f.is_infinite(a) || f.is_infinite(b)) {
    if ((a & 0x7fff) == 0 || (b & 0x7fff) == 0) return kNan;
    if (f.is_infinite(c) && (c >> 15 != 0) != negative) return kNan;
    return static_cast<u16>(f.infinity() | (negative ? 0x8000 : 0));
  }
  if (f.is_infinite(c)) return c;
  return round(f, sum(product(decode(f, a), decode(f, b)), decode(f, c)));
}
u16 one(const Format& f) { return static_cast<u16>(f.bias() << f.mantissa); }
u16 add(const Format& f, u16 a, u16 b, u16) { return fma(f, a, one(f), b); }
u16 sub(const Format& f, u16 a, u16 b, u16) { return fma(f, a, one(f), f.is_nan(b) ? b : b ^ 0x8000); }
u16 mul(const Format& f, u16 a, u16 b, u16) { return fma(f, a, b, (a ^ b) & 0x8000); }
u16 neg(const Format&, u16 a, u16, u16) { return a ^ 0x8000; }
u16 abs(const Format&, u16 a, u16, u16) { return a & 0x7fff; }
// Numbers in order: -0 is below +0.
int rank(u16 h) { return h >> 15 != 0 ? -1 - (h & 0x7fff) : h; }
u16 min(const Format& f, u16 a, u16 b, u16) {
  if (f.is_nan(a) || f.is_nan(b)) return !f.is_nan(a) ? a : !f.is_nan(b) ? b : kNan;
  return rank(a) < rank(b) ? a : b;
}
u16 max(const Format& f, u16 a, u16 b, u16) {
  if (f.is_nan(a) || f.is_nan(b)) return !f.is_nan(a) ? a : !f.is_nan(b) ? b : kNan;
  return rank(a) > rank(b) ? a : b;
}
bool less(const Format& f, u16 a, u16 b) {
  if (((a | b) & 0x7fff) == 0 || f.is_nan(a) || f.is_nan(b)) return false;  // zeros are equal
  return rank(a) < rank(b);
}
u16 less(const Format& f, u16 a, u16 b, u16) { return less(f, a, b) ? one(f) : 0; }
u16 not_greater(const Format& f, u16 a, u16 b, u16) { return less(f, b, a) ? 0 : 0xffff; }  // or unordered

using Operation = std::function<u16(const Format&, u16, u16, u16)>;
Operation nan_wins(const Operation& op) {
  return [op](const Format& f, u16 a, u16 b, u16 c) {
    return f.is_nan(a) || f.is_nan(b) ? kNan : op(f, a, b, c);
  };
}
Operation flushed(const Operation& op) {
  return [op](const Format& f, u16 a, u16 b, u16 c) {
    return f.flush(op(f, f.flush(a), f.flush(b), f.flush(c)));
  };
}
// To [0, 1], NaN to 0.
Operation saturated(const Operation& op) {
  return [op](const Format& f, u16 a, u16 b, u16 c) -> u16 {
    const u16 r = op(f, a, b, c);
    return f.is_nan(r) || r >> 15 != 0 ? 0 : std::min(r, one(f));
  };
}
Operation relu(const Operation& op) {
  return [op](const Format& f, u16 a, u16 b, u16 c) -> u16 {
    const u16 r = op(f, a, b, c);
    return f.is_nan(r) ? kNan : r >> 15 != 0 ? 0 : r;
  };
}

// Zeros, the ends and the middle of the subnormal numbers, around 1, of many exponents, the largest,
// infinity, NaN.
std::vector<u16> others(const Format& f) {
  const u16 unit = one(f), inf = f.infinity(), normal = static_cast<u16>(1 << f.mantissa);
  const auto at = [](int h) { return static_cast<u16>(h); };
  std::vector<u16> list{0,
                        at(0x8000),
                        1,
                        at(0x8001),
                        at(normal - 1),
                        at(normal / 2 + 1),
                        normal,
                        at(normal | 0x8001),
                        at(unit - 1),
                        unit,
                        at(unit + 1),
                        at(unit | 0x8000),
                        at(unit + normal / 2),
                        at(unit + normal - 1),
                        at(inf - 1),
                        at((inf - 1) | 0x8000),
                        inf,
                        at(inf | 0x8000),
                        kNan};
  u32 state = 1;
  while (list.size() < 24) state = state * 1664525u + 1013904223u, list.push_back(at(state >> 16));
  return list;
}

// out[j, i] for the pair i: halves i and i * 40503 (which takes every value too), with the other operands j
// and j + 1.
template <class F>
__global__ void apply(const u16* others, u32* out, int n) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x, a = (i * 40503u) << 16 | i;
  for (int j = 0; j < n; ++j) {
    const u32 b = u32{others[(j + 1) % n]} << 16 | others[j],
              c = u32{others[(j * 7 + i) % n]} << 16 | others[(j + i) % n];
    out[(j << 16) + i] = F::run(a, b, c);
  }
}
template <class F, bool kPacked>
void check(const Format& f, const Operation& expected) {
  const std::vector<u16> with = others(f);
  const int n = static_cast<int>(with.size());
  DeviceArray<u16> b(with);
  DeviceArray<u32> out(with.size() << 16);
  apply<F><<<256, 256>>>(b, out, n);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<u32> got = out.host();
  const auto expect = [&](u32 got, u16 x, u16 y, u16 z) {
    const u16 want = expected(f, x, y, z);
    // The payload of a NaN is its operand's or the canonical one.
    return got == want || (f.is_nan(static_cast<u16>(got)) && f.is_nan(want));
  };
  for (int j = 0; j < n; ++j) {
    for (u32 i = 0; i < 0x10000; ++i) {
      const u32 r = got[(static_cast<size_t>(j) << 16) + i];
      const u16 low = static_cast<u16>(i), high = static_cast<u16>(i * 40503u);
      ASSERT_TRUE(expect(r & 0xffff, low, with[j], with[(j + i) % n]))
          << std::hex << low << ", " << with[j] << ", " << with[(j + i) % n] << ": " << (r & 0xffff)
          << ", not " << expected(f, low, with[j], with[(j + i) % n]);
      if (kPacked)
        ASSERT_TRUE(expect(r >> 16, high, with[(j + 1) % n], with[(j * 7 + i) % n]))
            << std::hex << high << ", " << with[(j + 1) % n] << ", " << with[(j * 7 + i) % n] << ": "
            << (r >> 16);
    }
  }
}

#define PACKED(name, op, text)                                      \
  struct name {                                                     \
    __device__ static u32 run(u32 a, u32 b, u32 c) {                \
      u32 d;                                                        \
      asm("{" op " " text ";}" : "=r"(d) : "r"(a), "r"(b), "r"(c)); \
      return d;                                                     \
    }                                                               \
  };
#define SINGLE(name, op, text)                                                     \
  struct name {                                                                    \
    __device__ static u32 run(u32 a, u32 b, u32 c) {                               \
      u16 d;                                                                       \
      asm("{" op " " text ";}" : "=h"(d) : "h"(u16(a)), "h"(u16(b)), "h"(u16(c))); \
      return d;                                                                    \
    }                                                                              \
  };
#define CASE(name, kind, op, text, format, expected)                                 \
  kind(name##Instruction, op, text) TEST(Halves, name) {                             \
    check<name##Instruction, std::string_view(#kind) == "PACKED">(format, expected); \
  }
#define UNARY "%0, %1"
#define BINARY "%0, %1, %2"
#define TERNARY "%0, %1, %2, %3"

CASE(AddF16, SINGLE, "add.f16", BINARY, kF16, add)
CASE(AddF16x2, PACKED, "add.f16x2", BINARY, kF16, add)
CASE(AddFlushedF16x2, PACKED, "add.ftz.f16x2", BINARY, kF16, flushed(add))
CASE(AddSaturatedF16x2, PACKED, "add.sat.f16x2", BINARY, kF16, saturated(add))
CASE(SubtractF16x2, PACKED, "sub.rn.f16x2", BINARY, kF16, sub)
CASE(MultiplyF16, SINGLE, "mul.f16", BINARY, kF16, mul)
CASE(MultiplyF16x2, PACKED, "mul.f16x2", BINARY, kF16, mul)
CASE(MultiplyFlushedSaturatedF16x2, PACKED, "mul.ftz.sat.f16x2", BINARY, kF16, saturated(flushed(mul)))
CASE(FmaF16, SINGLE, "fma.rn.f16", TERNARY, kF16, fma)
CASE(FmaF16x2, PACKED, "fma.rn.f16x2", TERNARY, kF16, fma)
CASE(FmaFlushedF16x2, PACKED, "fma.rn.ftz.f16x2", TERNARY, kF16, flushed(fma))
CASE(FmaSaturatedF16x2, PACKED, "fma.rn.sat.f16x2", TERNARY, kF16, saturated(fma))
CASE(FmaReluF16x2, PACKED, "fma.rn.relu.f16x2", TERNARY, kF16, relu(fma))
CASE(MinF16x2, PACKED, "min.f16x2", BINARY, kF16, min)
CASE(MaxF16, SINGLE, "max.f16", BINARY, kF16, max)
CASE(MaxFlushedNanF16x2, PACKED, "max.ftz.NaN.f16x2", BINARY, kF16, flushed(nan_wins(max)))
CASE(NegateF16x2, PACKED, "neg.f16x2", UNARY, kF16, neg)
CASE(NegateFlushedF16x2, PACKED, "neg.ftz.f16x2", UNARY, kF16, flushed(neg))
CASE(AbsoluteF16, SINGLE, "abs.f16", UNARY, kF16, abs)
CASE(AbsoluteFlushedF16x2, PACKED, "abs.ftz.f16x2", UNARY, kF16, flushed(abs))
CASE(LessF16x2, PACKED, "set.lt.f16x2.f16x2", BINARY, kF16,
     static_cast<u16 (*)(const Format&, u16, u16, u16)>(less))
CASE(NotGreaterF16x2, PACKED, "set.leu.u32.f16x2", BINARY, kF16, not_greater)

CASE(FmaBf16, SINGLE, "fma.rn.bf16", TERNARY, kBf16, fma)
CASE(FmaBf16x2, PACKED, "fma.rn.bf16x2", TERNARY, kBf16, fma)
CASE(FmaReluBf16x2, PACKED, "fma.rn.relu.bf16x2", TERNARY, kBf16, relu(fma))
CASE(AddBf16x2, PACKED, ".reg .b32 one; mov.b32 one, 0x3f803f80; fma.rn.bf16x2", "%0, %1, one, %2", kBf16,
     add)
CASE(MinNanBf16x2, PACKED, "min.NaN.bf16x2", BINARY, kBf16, nan_wins(min))
CASE(MaxBf16, SINGLE, "max.bf16", BINARY, kBf16, max)
CASE(MaxBf16x2, PACKED, "max.bf16x2", BINARY, kBf16, max)
CASE(NegateBf16x2, PACKED, "neg.bf16x2", UNARY, kBf16, neg)
CASE(AbsoluteBf16x2, PACKED, "abs.bf16x2", UNARY, kBf16, abs)

// Approximations: rounded once, which is inside the bounds of the PTX ISA, and a hundredth for the error of
// the reference.
template <class F>
void expect_close(double (*reference)(double)) {
  DeviceArray<u16> one(std::vector<u16>{0});
  DeviceArray<u32> out(0x10000);
  apply<F><<<256, 256>>>(one, out, 1);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<u32> got = out.host();
  const auto value = [](u16 h) {
    const Exact x = decode(kF16, h);
    const double magnitude = kF16.is_nan(h)        ? NAN
                             : kF16.is_infinite(h) ? INFINITY
                                                   : std::ldexp(static_cast<double>(x.magnitude), x.exponent);
    return x.negative ? -magnitude : magnitude;
  };
  for (u32 i = 0; i < 0x10000; ++i) {
    const double want = reference(value(static_cast<u16>(i))), is = value(static_cast<u16>(got[i]));
    if (std::isnan(want) || std::fabs(want) >= 65520) {  // rounds to infinity
      ASSERT_TRUE(std::isnan(want) ? std::isnan(is) : std::isinf(is)) << std::hex << i;
      continue;
    }
    const double unit = std::ldexp(1, std::max(want == 0 ? -14 : std::ilogb(want), -14) - 10);
    ASSERT_LE(std::fabs(is - want), 0.51 * unit) << std::hex << i;
  }
}
PACKED(Exponential2, "ex2.approx.f16x2", UNARY)
PACKED(Tangent, "tanh.approx.f16x2", UNARY)
TEST(Halves, Exponential2) {
  expect_close<Exponential2>([](double x) { return std::exp2(x); });
}
TEST(Halves, Tangent) {
  expect_close<Tangent>([](double x) { return std::tanh(x); });
}

}  // namespace
