// Conversions against an independent implementation: the destination's values as a sorted table, in which the
// nearest, the next below and the next above are looked up. Of the 2^32 floats every 4,093rd, and those
// around each half.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "support.h"

namespace {

float as_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
// Finite values that are not negative, by bits: value of code i. `mantissa` bits of fraction, `exponent`
// bits.
std::vector<double> table(int exponent, int mantissa) {
  const int bias = (1 << (exponent - 1)) - 1, codes = ((1 << exponent) - 1) << mantissa;
  std::vector<double> values(static_cast<size_t>(codes));
  for (int c = 0; c < codes; ++c) {
    const int e = c >> mantissa, m = c & ((1 << mantissa) - 1);
    values[static_cast<size_t>(c)] =
        e == 0 ? std::ldexp(m, 1 - bias - mantissa) : std::ldexp(m + (1 << mantissa), e - bias - mantissa);
  }
  return values;
}
enum class Mode { kNearest, kZero, kDown, kUp };
// The 16 bits that |x| of the given sign becomes; infinity is code values.size().
uint16_t expected(const std::vector<double>& values, double x, Mode mode) {
  const bool negative = std::signbit(x);
  const double magnitude = std::fabs(x);
  const uint16_t sign = negative ? 0x8000 : 0;
  const auto size = static_cast<uint16_t>(values.size());
  if (std::isinf(x)) return sign | size;
  const auto above = std::upper_bound(values.begin(), values.end(), magnitude);  // first larger
  const auto low = static_cast<uint16_t>(above - values.begin() - 1);
  if (values[low] == magnitude) return sign | low;
  const bool away = mode == (negative ? Mode::kDown : Mode::kUp);
  if (mode != Mode::kNearest) return sign | static_cast<uint16_t>(low + (away ? 1 : 0));
  const double next = above == values.end() ? 2 * values[low] - values[low - 1] : *above;
  const double middle = (values[low] + next) / 2;
  const bool up = magnitude > middle || (magnitude == middle && low % 2 == 1);
  return sign | static_cast<uint16_t>(low + (up ? 1 : 0));
}
std::vector<float> samples() {
  std::vector<float> list;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 4093)
    list.push_back(as_float(static_cast<uint32_t>(bits)));
  for (uint32_t high = 0; high < 0x10000; ++high) {  // ties of bf16 and what lies beside them
    for (const uint32_t low : {0x7fffu, 0x8000u, 0x8001u}) list.push_back(as_float(high << 16 | low));
  }
  for (uint32_t h = 0; h < 0x7c00; ++h) {  // ties of f16
    const float value = __half2float(__ushort_as_half(static_cast<unsigned short>(h))),
                next = __half2float(__ushort_as_half(static_cast<unsigned short>(h + 1)));
    const float middle = h + 1 == 0x7c00 ? 65520.0f : (value + next) / 2;
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)})
      list.push_back(x), list.push_back(-x);
  }
  return list;
}

#define TO16(name, cvt)                                         \
  __global__ void name(const float* in, uint16_t* out, int n) { \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;        \
    if (i >= n) return;                                         \
    unsigned short h;                                           \
    asm(cvt " %0, %1;" : "=h"(h) : "f"(in[i]));                 \
    out[i] = h;                                                 \
  }
TO16(f16_rn, "cvt.rn.f16.f32")
TO16(f16_rz, "cvt.rz.f16.f32")
TO16(f16_rm, "cvt.rm.f16.f32")
TO16(f16_rp, "cvt.rp.f16.f32")
TO16(bf16_rn, "cvt.rn.bf16.f32")
TO16(bf16_rz, "cvt.rz.bf16.f32")
// Two at once: the second operand goes to the low half.
#define TO32(name, cvt)                                                    \
  __global__ void name(const float* in, uint16_t* out, int n) {            \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                   \
    if (2 * i >= n) return;                                                \
    const float high = 2 * i + 1 < n ? in[2 * i + 1] : 0.0f;               \
    unsigned pair;                                                         \
    asm(cvt " %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(in[2 * i]));      \
    out[2 * i] = static_cast<uint16_t>(pair);                              \
    if (2 * i + 1 < n) out[2 * i + 1] = static_cast<uint16_t>(pair >> 16); \
  }
TO32(f16x2_rn, "cvt.rn.f16x2.f32")
TO32(f16x2_rz, "cvt.rz.f16x2.f32")
TO32(bf16x2_rn, "cvt.rn.bf16x2.f32")
TO32(bf16x2_rz, "cvt.rz.bf16x2.f32")

void check(void (*kernel)(const float*, uint16_t*, int), int exponent, int mantissa, Mode mode) {
  const std::vector<double> values = table(exponent, mantissa);
  const std::vector<float> in = samples();
  const int n = static_cast<int>(in.size());
  DeviceArray<float> device(in);
  DeviceArray<uint16_t> out(in.size());
  kernel<<<(n + 255) / 256, 256>>>(device, out, n);
  CUDA_OK(cudaDeviceSynchronize());
  const auto got = out.host();
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(in[i])) {
      ASSERT_EQ(0x7fff, got[i]) << "a NaN becomes the canonical one";
      continue;
    }
    ASSERT_EQ(expected(values, in[i], mode), got[i]) << in[i] << " of bits " << std::hexfloat << in[i];
  }
}
TEST(Convert, FloatToHalfNearest) { check(f16_rn, 5, 10, Mode::kNearest); }
TEST(Convert, FloatToHalfTowardsZero) { check(f16_rz, 5, 10, Mode::kZero); }
TEST(Convert, FloatToHalfDown) { check(f16_rm, 5, 10, Mode::kDown); }
TEST(Convert, FloatToHalfUp) { check(f16_rp, 5, 10, Mode::kUp); }
TEST(Convert, FloatToPairsOfHalves) {
  check(f16x2_rn, 5, 10, Mode::kNearest);
  check(f16x2_rz, 5, 10, Mode::kZero);
  check(bf16x2_rn, 8, 7, Mode::kNearest);
  check(bf16x2_rz, 8, 7, Mode::kZero);
}
TEST(Convert, FloatToBfloatTowardsZero) { check(bf16_rz, 8, 7, Mode::kZero); }
TEST(Convert, FloatToBfloatNearest) { check(bf16_rn, 8, 7, Mode::kNearest); }

// tf32: ten bits of fraction, ties away from zero; the other 13 bits are zero.
__global__ void to_tf32(const float* in, unsigned* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out[i]) : "f"(in[i]));
}
TEST(Convert, FloatToTf32) {
  const std::vector<float> in = samples();
  const int n = static_cast<int>(in.size());
  DeviceArray<float> device(in);
  DeviceArray<unsigned> out(in.size());
  to_tf32<<<(n + 255) / 256, 256>>>(device, out, n);
  CUDA_OK(cudaDeviceSynchronize());
  const auto got = out.host();
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(in[i])) {
      ASSERT_TRUE(std::isnan(as_float(got[i])));
      continue;
    }
    unsigned bits;
    std::memcpy(&bits, &in[i], 4);
    const unsigned below = bits & ~0x1fffu, want = std::isinf(in[i])       ? bits
                                                   : (bits & 0x1000u) != 0 ? below + 0x2000u
                                                                           : below;
    ASSERT_EQ(want, got[i]) << in[i];
  }
}

// To float in the four roundings from double and from integers: of the two floats around the value the right
// one.
template <class T>
__global__ void to_floats(const T* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  if constexpr (std::is_same_v<T, double>) {
    out[i] = __double2float_rn(in[i]), out[n + i] = __double2float_rz(in[i]);
    out[2 * n + i] = __double2float_rd(in[i]), out[3 * n + i] = __double2float_ru(in[i]);
  } else if constexpr (std::is_same_v<T, int>) {
    out[i] = __int2float_rn(in[i]), out[n + i] = __int2float_rz(in[i]);
    out[2 * n + i] = __int2float_rd(in[i]), out[3 * n + i] = __int2float_ru(in[i]);
  } else if constexpr (std::is_same_v<T, unsigned>) {
    out[i] = __uint2float_rn(in[i]), out[n + i] = __uint2float_rz(in[i]);
    out[2 * n + i] = __uint2float_rd(in[i]), out[3 * n + i] = __uint2float_ru(in[i]);
  } else if constexpr (std::is_same_v<T, long long>) {
    out[i] = __ll2float_rn(in[i]), out[n + i] = __ll2float_rz(in[i]);
    out[2 * n + i] = __ll2float_rd(in[i]), out[3 * n + i] = __ll2float_ru(in[i]);
  } else {
    out[i] = __ull2float_rn(in[i]), out[n + i] = __ull2float_rz(in[i]);
    out[2 * n + i] = __ull2float_rd(in[i]), out[3 * n + i] = __ull2float_ru(in[i]);
  }
}
// long double holds every one of these exactly.
float rounded(long double x, int mode) {
  const bool negative = std::signbit(x);
  const long double magnitude = std::fabs(x);
  float low = static_cast<float>(magnitude);
  if (static_cast<long double>(low) > magnitude) low = std::nextafter(low, 0.0f);
  float result = low;
  if (static_cast<long double>(low) != magnitude) {
    const float high = std::nextafter(low, INFINITY);
    unsigned bits;
    std::memcpy(&bits, &low, 4);
    const long double next = std::isinf(high) ? 0x1p128L : static_cast<long double>(high);
    const long double below = magnitude - low, above = next - magnitude;
    const bool up = mode == 0   ? below > above || (below == above && bits % 2 == 1)
                    : mode == 1 ? false
                    : mode == 2 ? negative
                                : !negative;
    if (up) result = high;
  }
  return negative ? -result : result;
}
template <class T>
void check_to_float(const std::vector<T>& in) {
  const int n = static_cast<int>(in.size());
  DeviceArray<T> device(in);
  DeviceArray<float> out(in.size() * 4);
  to_floats<<<(n + 255) / 256, 256>>>(device.data(), out.data(), n);
  CUDA_OK(cudaDeviceSynchronize());
  const auto got = out.host();
  for (int mode = 0; mode < 4; ++mode) {
    for (int i = 0; i < n; ++i) {
      const float want = rounded(static_cast<long double>(in[static_cast<size_t>(i)]), mode),
                  is = got[static_cast<size_t>(mode) * n + i];
      ASSERT_TRUE(want == is && std::signbit(want) == std::signbit(is))
          << in[static_cast<size_t>(i)] << ", rounding " << mode << ": " << is << ", not " << want;
    }
  }
}
TEST(Convert, DoubleAndIntegersToFloat) {
  uint64_t state = 1;
  const auto draw = [&] {
    return state = state * 6364136223846793005u + 1442695040888963407u, state ^ state >> 29;
  };
  std::vector<double> doubles{0.0,      -0.0,         1e300,        -1e300,    0x1.ffffffp127,
                              0x1p-150, 0x1.000001p0, 0x1.000003p0, 0x1.8p-149};
  std::vector<int> ints{0, 1, -1, INT32_MAX, INT32_MIN, 16777217, 16777219};
  std::vector<unsigned> unsigneds{0, 1, UINT32_MAX, 16777217, 0xffffff7f, 0xffffff80};
  std::vector<long long> longs{0, -1, INT64_MAX, INT64_MIN, (1ll << 53) + 1, (1ll << 62) + (1ll << 38) + 1};
  std::vector<unsigned long long> ulongs{0,
                                         1,
                                         UINT64_MAX,
                                         (1ull << 63) + (1ull << 39),
                                         (1ull << 63) + (1ull << 39) + 1,
                                         (1ull << 63) + (1ull << 39) - 1};
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t bits = draw(), exponent = 1023 - 160 + draw() % 300;
    double d;
    const uint64_t pattern = (bits & 0x800fffffffffffffu) | exponent << 52;
    std::memcpy(&d, &pattern, 8);
    doubles.push_back(d);
    ints.push_back(static_cast<int>(bits) >> draw() % 32);
    unsigneds.push_back(static_cast<unsigned>(bits) >> draw() % 32);
    longs.push_back(static_cast<long long>(bits) >> draw() % 64);
    ulongs.push_back(bits >> draw() % 64);
  }
  check_to_float(doubles);
  check_to_float(ints);
  check_to_float(unsigneds);
  check_to_float(longs);
  check_to_float(ulongs);
}

__global__ void to_integers(const float* in, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = __float2int_rn(in[i]);
  out[n + i] = __float2int_rz(in[i]);
  out[2 * n + i] = __float2int_rd(in[i]);
  out[3 * n + i] = __float2int_ru(in[i]);
  out[4 * n + i] = static_cast<int>(__float2uint_rn(in[i]));
}
// Out of range: the nearest end; NaN: 0 of s32 and u32.
TEST(Convert, FloatToIntegersSaturate) {
  const std::vector<float> in = samples();
  const int n = static_cast<int>(in.size());
  DeviceArray<float> device(in);
  DeviceArray<int> out(in.size() * 5);
  to_integers<<<(n + 255) / 256, 256>>>(device, out, n);
  CUDA_OK(cudaDeviceSynchronize());
  const auto got = out.host();
  for (int i = 0; i < n; ++i) {
    const double x = in[static_cast<size_t>(i)], floor = std::floor(x), rest = x - floor;
    const double nearest = rest > 0.5 || (rest == 0.5 && std::fmod(floor, 2.0) != 0) ? floor + 1 : floor;
    const double rounded[] = {nearest, std::trunc(x), floor, std::ceil(x)};
    for (int k = 0; k < 4; ++k) {
      const int want =
          std::isnan(x) ? 0 : static_cast<int>(std::clamp(rounded[k], -2147483648.0, 2147483647.0));
      ASSERT_EQ(want, got[static_cast<size_t>(k) * n + i]) << x << ", rounding " << k;
    }
    const auto want = std::isnan(x)
                          ? 0u
                          : static_cast<unsigned>(std::clamp(std::isinf(x) ? x : nearest, 0.0, 4294967295.0));
    ASSERT_EQ(want, static_cast<unsigned>(got[static_cast<size_t>(4) * n + i])) << x;
  }
}

// --- f16 from and to integers and double, and to integral f16 ---
template <class F, class In, class Out>
__global__ void convert(const In* in, Out* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = F::run(in[i]);
}
#define CONVERSION(name, cvt, In, in_register, Out, out_register) \
  struct name {                                                   \
    __device__ static Out run(In x) {                             \
      Out r;                                                      \
      asm(cvt " %0, %1;" : out_register(r) : in_register(x));     \
      return r;                                                   \
    }                                                             \
  };
// In the order of Mode; the suffix is "i" for integral results.
#define FOUR(name, suffix, types, In, in_register, Out, out_register)                      \
  CONVERSION(name##Nearest, "cvt.rn" suffix "." types, In, in_register, Out, out_register) \
  CONVERSION(name##Zero, "cvt.rz" suffix "." types, In, in_register, Out, out_register)    \
  CONVERSION(name##Down, "cvt.rm" suffix "." types, In, in_register, Out, out_register)    \
  CONVERSION(name##Up, "cvt.rp" suffix "." types, In, in_register, Out, out_register)      \
  template <class Check>                                                                   \
  void in_four_modes(name, const std::vector<In>& in, Check&& check) {                     \
    compare<name##Nearest, In, Out>(in, [&](In x) { return check(x, Mode::kNearest); });   \
    compare<name##Zero, In, Out>(in, [&](In x) { return check(x, Mode::kZero); });         \
    compare<name##Down, In, Out>(in, [&](In x) { return check(x, Mode::kDown); });         \
    compare<name##Up, In, Out>(in, [&](In x) { return check(x, Mode::kUp); });             \
  }
template <class F, class In, class Out, class Want>
void compare(const std::vector<In>& in, Want&& want) {
  const int n = static_cast<int>(in.size());
  DeviceArray<In> device(in);
  DeviceArray<Out> out(in.size());
  convert<F><<<(n + 255) / 256, 256>>>(device.data(), out.data(), n);
  CUDA_OK(cudaDeviceSynchronize());
  const auto got = out.host();
  for (int i = 0; i < n; ++i) ASSERT_EQ(want(in[i]), got[i]) << +in[i] << ", number " << i;
}
using i16 = int16_t;
using u16 = uint16_t;
using i64 = long long;
using u64 = unsigned long long;
struct ToS16 {};
struct ToU16 {};
struct ToS32 {};
struct ToU32 {};
struct ToS64 {};
struct ToU64 {};
struct ToIntegral {};
struct OfS16 {};
struct OfU16 {};
struct OfS32 {};
struct OfU32 {};
struct OfS64 {};
struct OfU64 {};
struct OfF64 {};
FOUR(ToS16, "i", "s16.f16", u16, "h", i16, "=h")
FOUR(ToU16, "i", "u16.f16", u16, "h", u16, "=h")
FOUR(ToS32, "i", "s32.f16", u16, "h", int, "=r")
FOUR(ToU32, "i", "u32.f16", u16, "h", unsigned, "=r")
FOUR(ToS64, "i", "s64.f16", u16, "h", i64, "=l")
FOUR(ToU64, "i", "u64.f16", u16, "h", u64, "=l")
FOUR(ToIntegral, "i", "f16.f16", u16, "h", u16, "=h")
FOUR(OfS16, "", "f16.s16", i16, "h", u16, "=h")
FOUR(OfU16, "", "f16.u16", u16, "h", u16, "=h")
FOUR(OfS32, "", "f16.s32", int, "r", u16, "=h")
FOUR(OfU32, "", "f16.u32", unsigned, "r", u16, "=h")
FOUR(OfS64, "", "f16.s64", i64, "l", u16, "=h")
FOUR(OfU64, "", "f16.u64", u64, "l", u16, "=h")
FOUR(OfF64, "", "f16.f64", double, "d", u16, "=h")

double rounded_to_integer(double x, Mode mode) {
  if (std::isnan(x) || std::isinf(x)) return x;
  const double floor = std::floor(x), rest = x - floor;
  const double nearest = rest > 0.5 || (rest == 0.5 && std::fmod(floor, 2.0) != 0) ? floor + 1 : floor;
  const double r = mode == Mode::kNearest ? nearest
                   : mode == Mode::kZero  ? std::trunc(x)
                   : mode == Mode::kDown  ? floor
                                          : std::ceil(x);
  return std::copysign(r, x);
}
std::vector<u16> all_halves() {
  std::vector<u16> list(0x10000);
  for (size_t i = 0; i < list.size(); ++i) list[i] = static_cast<u16>(i);
  return list;
}
double value_of(u16 h) { return static_cast<double>(__half2float(__ushort_as_half(h))); }
// Out of range: the nearest end; NaN: 0.
template <class T, class Kind>
void check_halves_to(Kind kind) {
  in_four_modes(kind, all_halves(), [](u16 h, Mode mode) -> T {
    const double x = rounded_to_integer(value_of(h), mode);
    constexpr T kLeast = std::numeric_limits<T>::min(), kMost = std::numeric_limits<T>::max();
    if (std::isnan(x)) return 0;
    if (x <= static_cast<double>(kLeast)) return kLeast;
    return x >= static_cast<double>(kMost) ? kMost : static_cast<T>(x);
  });
}
TEST(Convert, AllHalvesToIntegers) {
  check_halves_to<i16>(ToS16());
  check_halves_to<u16>(ToU16());
  check_halves_to<int>(ToS32());
  check_halves_to<unsigned>(ToU32());
  check_halves_to<i64>(ToS64());
  check_halves_to<u64>(ToU64());
}
TEST(Convert, AllHalvesToIntegralHalves) {
  const std::vector<double> values = table(5, 10);
  in_four_modes(ToIntegral(), all_halves(), [&](u16 h, Mode mode) -> u16 {
    const double x = rounded_to_integer(value_of(h), mode);
    return std::isnan(x) ? 0x7fff : expected(values, x, Mode::kNearest);
  });
}
// All 2^16 of 16 bits; of more every so many bits, and the neighbourhood of what is the largest half.
template <class T, class Kind>
void check_integers(Kind kind) {
  const std::vector<double> values = table(5, 10);
  std::vector<T> in;
  for (int x = -70'000; x <= 70'000; ++x) in.push_back(static_cast<T>(x));
  u64 state = 1;
  for (int k = 0; k < 20'000; ++k) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    in.push_back(static_cast<T>(static_cast<T>(state) >> (state >> 58) % (8 * sizeof(T))));
  }
  in_four_modes(kind, in, [&](T x, Mode mode) { return expected(values, static_cast<double>(x), mode); });
}
TEST(Convert, IntegersToHalves) {
  check_integers<i16>(OfS16());
  check_integers<u16>(OfU16());
  check_integers<int>(OfS32());
  check_integers<unsigned>(OfU32());
  check_integers<i64>(OfS64());
  check_integers<u64>(OfU64());
}
// Around every tie: a double rounding through float would show.
TEST(Convert, DoubleToHalves) {
  const std::vector<double> values = table(5, 10);
  std::vector<double> in{INFINITY, -INFINITY, 1e300, -1e-300, 0.0, -0.0};
  for (size_t c = 0; c + 1 < values.size(); ++c) {
    const double middle = (values[c] + values[c + 1]) / 2;
    for (const double x : {middle, std::nextafter(middle, 0.0), std::nextafter(middle, 1e9)})
      in.push_back(x), in.push_back(-x);
  }
  in_four_modes(OfF64(), in, [&](double x, Mode mode) { return expected(values, x, mode); });
}

}  // namespace
