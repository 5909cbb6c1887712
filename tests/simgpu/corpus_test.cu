// Small kernels, one topic each, against what the host computes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "support.h"

namespace {

std::vector<unsigned> bits(size_t n, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::vector<unsigned> values(n);
  for (unsigned& v : values) v = random();
  for (size_t i = 0; i < 8 && i < n; ++i)
    values[i] = std::vector<unsigned>{0, 1, 0xffffffff, 0x80000000, 0x7fffffff, 2, 31, 32}[i];
  return values;
}
std::vector<float> reals(size_t n, float low, float high, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(n);
  for (float& v : values) v = uniform(random);
  return values;
}

// out[i] = F(a[i], b[i], c[i]) on both sides: F is compiled for host and device.
template <class F, class T, class R>
__global__ void apply(const T* a, const T* b, const T* c, R* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = F()(a[i], b[i], c[i]);
}
template <class F, class T>
void expect_same(const std::vector<T>& a, const std::vector<T>& b, const std::vector<T>& c) {
  using R = decltype(F()(T(), T(), T()));
  const int n = static_cast<int>(a.size());
  DeviceArray<T> da(a), db(b), dc(c);
  DeviceArray<R> out(a.size());
  apply<F><<<(n + 127) / 128, 128>>>(da.data(), db.data(), dc.data(), out.data(), n);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<R> got = out.host();
  for (int i = 0; i < n; ++i) {
    const R expected = F()(a[i], b[i], c[i]);
    ASSERT_EQ(0, std::memcmp(&got[i], &expected, sizeof(R)))
        << "at " << i << ": got " << got[i] << ", expected " << expected << ", of " << a[i] << ", " << b[i]
        << ", " << c[i];
  }
}
template <class T>
std::vector<T> as(const std::vector<unsigned>& v) {
  std::vector<T> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    const unsigned long long wide = (static_cast<unsigned long long>(v[(i * 7 + 3) % v.size()]) << 32) | v[i];
    out[i] = static_cast<T>(wide);
  }
  return out;
}

// F names an operation: #expression of a, b and c, the same text for host and device.
#define SAME(name, type, expression)                                                     \
  struct name##Operation {                                                               \
    __host__ __device__ auto operator()(type a, type b, type c) const {                  \
      (void)a, (void)b, (void)c;                                                         \
      return expression;                                                                 \
    }                                                                                    \
  };                                                                                     \
  TEST(Integer, name) {                                                                  \
    expect_same<name##Operation, type>(as<type>(bits(1000, 1)), as<type>(bits(1000, 2)), \
                                       as<type>(bits(1000, 3)));                         \
  }
using u16 = unsigned short;
using u32 = unsigned;
using i64 = long long;
using u64 = unsigned long long;
SAME(AddSubtract, u32, a + b - c)
SAME(Multiply, u32, a* b + c)
SAME(MultiplySigned16, short, static_cast<int>(a) * b)
SAME(MultiplyWideUnsigned, u32, static_cast<u64>(a) * b + c)
SAME(MultiplyWideSigned, int, static_cast<i64>(a) * b - c)
SAME(Multiply64, u64, a* b + c)
SAME(DivideUnsigned, u32, b == 0 ? 0u : a / b + a % b)
SAME(DivideSigned, int, b == 0 || b == -1 ? 0 : a / b - a % b)
SAME(DivideByConstant, int, a / 7 + b % 10)
SAME(Divide64, i64, b == 0 || b == -1 ? 0 : a / b + a % b)
SAME(MinimaMaxima, int, (a < b ? a : b) ^ (b > c ? b : c))
SAME(MinimaUnsigned, u32, (a < b ? a : b) + (b > c ? b : c))
SAME(Logic, u32, (a & b) ^ (~b | c) ^ (a & ~c))
SAME(ThreeInputLogic, u32, (a ^ b ^ c) + ((a & b) | (b & c) | (a & c)))
SAME(ShiftLeft, u32, (a << (b & 31)) + (c << 3))
SAME(ShiftRightUnsigned, u32, (a >> (b & 31)) + (c >> 5))
SAME(ShiftRightSigned, int, (a >> (b & 31)) + (c >> 5))
SAME(Shift64, u64, (a << (b & 63)) ^ (c >> (a & 63)))
SAME(Rotate, u32, (a << (b & 31)) | (a >> ((32 - (b & 31)) & 31)))
SAME(Bitfields, u32, ((a >> 5) & 0x3ff) + ((b & 0xff00) << 3) + (c & 0xffff))
SAME(Bytes, u32, (a & 0xff) * (b >> 24) + static_cast<unsigned char>(c >> 8))
SAME(SignedBytes, int, static_cast<signed char>(a) * static_cast<signed char>(b >> 8) + static_cast<short>(c))
SAME(Compare64, i64, (a < b) + 2 * (a <= c) + 4 * (b == c) + 8 * (b != a) + 16 * (a > c))
SAME(Absolute, int, (a < 0 ? 0u - static_cast<u32>(a) : static_cast<u32>(a)) + static_cast<u32>(b))
SAME(Halfwords, u16, static_cast<u16>((a + b) * c))
SAME(ToFloat, int, static_cast<float>(a) + 0.0f * static_cast<float>(b))
SAME(ToDouble64, i64, static_cast<double>(a))
SAME(UnsignedToFloat, u32, static_cast<float>(a))
SAME(Float64FromUnsigned64, u64, static_cast<float>(a))

__device__ u32 intrinsics(u32 a, u32 b, u32 c) {
  return __popc(a) + __clz(b) * 3 + __ffs(c) * 5 + __brev(a) + __byte_perm(a, b, c & 0x7777) + __umulhi(a, b)
         + __funnelshift_l(a, b, c) + __funnelshift_r(a, b, c) + __vadd4(a, b);
}
u32 intrinsics_on_host(u32 a, u32 b, u32 c) {
  const auto byte = [&](u32 k) { return (k < 4 ? a >> 8 * k : b >> 8 * (k - 4)) & 255; };
  u32 permuted = 0, reversed = 0, added = 0;
  for (u32 k = 0; k < 4; ++k) {
    permuted |= byte(c >> 4 * k & 7) << 8 * k;
    added |= (((a >> 8 * k) + (b >> 8 * k)) & 255) << 8 * k;
  }
  for (u32 k = 0; k < 32; ++k) reversed |= (a >> k & 1) << (31 - k);
  const u64 both = static_cast<u64>(b) << 32 | a;
  const u32 left = static_cast<u32>((both << (c & 31)) >> 32), right = static_cast<u32>(both >> (c & 31));
  return __builtin_popcount(a) + (b == 0 ? 32 : __builtin_clz(b)) * 3 + __builtin_ffs(static_cast<int>(c)) * 5
         + reversed + permuted + static_cast<u32>(static_cast<u64>(a) * b >> 32) + left + right + added;
}
__global__ void intrinsic_kernel(const u32* a, const u32* b, const u32* c, u32* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = intrinsics(a[i], b[i], c[i]);
}
TEST(Integer, Intrinsics) {
  const auto a = bits(1024, 1), b = bits(1024, 2), c = bits(1024, 3);
  DeviceArray<u32> da(a), db(b), dc(c), out(1024);
  intrinsic_kernel<<<8, 128>>>(da, db, dc, out);
  const auto got = out.host();
  for (int i = 0; i < 1024; ++i) ASSERT_EQ(got[i], intrinsics_on_host(a[i], b[i], c[i])) << i;
}

// (a * b + c) >> 32 for a and c of 64 bits and b of 32: five instructions that hand on their carries.
__global__ void carry_kernel(const u64* a, const u32* b, const u64* c, u64* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const u32 a0 = static_cast<u32>(a[i]), a1 = static_cast<u32>(a[i] >> 32);
  const u32 c0 = static_cast<u32>(c[i]), c1 = static_cast<u32>(c[i] >> 32);
  u32 r0, r1, r2;
  asm("mad.lo.cc.u32 %0, %3, %5, %6;\n\t"
      "madc.hi.cc.u32 %1, %3, %5, %7;\n\t"
      "addc.u32 %2, 0, 0;\n\t"
      "mad.lo.cc.u32 %1, %4, %5, %1;\n\t"
      "madc.hi.u32 %2, %4, %5, %2;"
      : "=&r"(r0), "=&r"(r1), "=&r"(r2)
      : "r"(a0), "r"(a1), "r"(b[i]), "r"(c0), "r"(c1));
  out[i] = static_cast<u64>(r2) << 32 | r1;
}
TEST(Integer, MultiplyAddWithCarry) {
  const auto b = bits(1024, 2);
  const std::vector<u64> a = as<u64>(bits(1024, 1)), c = as<u64>(bits(1024, 3));
  DeviceArray<u64> da(a), dc(c), out(1024);
  DeviceArray<u32> db(b);
  carry_kernel<<<8, 128>>>(da, db, dc, out);
  const auto got = out.host();
  for (size_t i = 0; i < 1024; ++i) {
    const u64 expected = static_cast<u64>((static_cast<unsigned __int128>(a[i]) * b[i] + c[i]) >> 32);
    ASSERT_EQ(got[i], expected) << i;
  }
}

// --- floating point: exact where IEEE says so ---
#define SAME_REAL(name, type, expression)                                                                 \
  struct name##Operation {                                                                                \
    __host__ __device__ type operator()(type a, type b, type c) const {                                   \
      return (void)a, (void)b, (void)c, (expression);                                                     \
    }                                                                                                     \
  };                                                                                                      \
  TEST(Real, name) {                                                                                      \
    const auto x = reals(1000, -100, 100, 1), y = reals(1000, 0.001f, 10, 2), z = reals(1000, -1, 1, 3);  \
    expect_same<name##Operation, type>({x.begin(), x.end()}, {y.begin(), y.end()}, {z.begin(), z.end()}); \
  }
SAME_REAL(FusedMultiplyAdd, float, fmaf(a, b, c))
SAME_REAL(Division, float, a / b)
SAME_REAL(SquareRoot, float, sqrtf(b))
SAME_REAL(MinMax, float, fminf(a, b) - fmaxf(b, c))
SAME_REAL(Rounding, float, floorf(a) + 2 * ceilf(b) + 4 * truncf(c * 50) + 8 * rintf(a))
SAME_REAL(AbsoluteSign, float, fabsf(a) + copysignf(b, c))
SAME_REAL(ToInteger, float, static_cast<float>(static_cast<int>(a) + static_cast<long long>(b * 1000)))
SAME_REAL(DoubleFma, double, fma(a, b, c))
SAME_REAL(DoubleDivision, double, a / b + sqrt(b))
SAME_REAL(DoubleRounding, double, floor(a) + ceil(b) + trunc(c * 77))
SAME_REAL(ThroughFloat, double, static_cast<double>(static_cast<float>(a* b)))

// F on the device against `reference` in double, within `ulps` of float.
template <class F>
__global__ void apply_one(const float* a, float* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = F()(a[blockIdx.x * blockDim.x + threadIdx.x]);
}
template <class F>
void expect_close(float low, float high, double (*reference)(double), double ulps) {
  const auto a = reals(1024, low, high);
  DeviceArray<float> in(a), out(1024);
  apply_one<F><<<8, 128>>>(in, out);
  CUDA_OK(cudaDeviceSynchronize());
  const auto got = out.host();
  for (int i = 0; i < 1024; ++i) {
    const double expected = reference(a[i]),
                 unit = std::ldexp(1.0, std::max(std::ilogb(expected), -126) - 23);
    EXPECT_LE(std::fabs(got[i] - expected), ulps * unit)
        << "of " << a[i] << ": " << got[i] << ", expected " << expected;
  }
}
// The bounds are those of the CUDA programming guide's table for the single-precision functions.
#define CLOSE(name, call, low, high, reference, ulps)           \
  struct name##Function {                                       \
    __device__ float operator()(float x) const { return call; } \
  };                                                            \
  TEST(Function, name) {                                        \
    expect_close<name##Function>(                               \
        low, high, [](double x) { return reference; }, ulps);   \
  }
CLOSE(Exponential, expf(x), -80, 80, std::exp(x), 2)
CLOSE(Exponential2, exp2f(x), -100, 100, std::exp2(x), 2)
CLOSE(Logarithm, logf(x), 0.001f, 1000, std::log(x), 1)
CLOSE(Tangent, tanhf(x), -5, 5, std::tanh(x), 2)
CLOSE(Sine, sinf(x), -30, 30, std::sin(x), 2)
CLOSE(Cosine, cosf(x), -30, 30, std::cos(x), 2)
CLOSE(ErrorFunction, erff(x), -3, 3, std::erf(x), 2)
CLOSE(Power, powf(x, 1.7f), 0.01f, 50, std::pow(x, static_cast<double>(1.7f)), 4)
CLOSE(ReciprocalSquareRoot, rsqrtf(x), 0.001f, 1000, 1 / std::sqrt(x), 2)
CLOSE(CubeRoot, cbrtf(x), -100, 100, std::cbrt(x), 1)

// The approximate instructions: rounded once, which is inside every bound of the PTX ISA, and a hundredth for
// the error of the reference.
#define APPROXIMATE(name, instruction, low, high, reference)  \
  struct name##Instruction {                                  \
    __device__ float operator()(float x) const {              \
      float r;                                                \
      asm(instruction : "=f"(r) : "f"(x));                    \
      return r;                                               \
    }                                                         \
  };                                                          \
  TEST(Approximate, name) {                                   \
    expect_close<name##Instruction>(                          \
        low, high, [](double x) { return reference; }, 0.51); \
  }
APPROXIMATE(Reciprocal, "rcp.approx.f32 %0, %1;", -100, 100, 1 / x)
APPROXIMATE(SquareRoot, "sqrt.approx.f32 %0, %1;", 0.001f, 1000, std::sqrt(x))
APPROXIMATE(ReciprocalSquareRoot, "rsqrt.approx.f32 %0, %1;", 0.001f, 1000, 1 / std::sqrt(x))
APPROXIMATE(Exponential2, "ex2.approx.f32 %0, %1;", -140, 120, std::exp2(x))
APPROXIMATE(Logarithm2, "lg2.approx.f32 %0, %1;", 0.001f, 1000, std::log2(x))
APPROXIMATE(Sine, "sin.approx.f32 %0, %1;", -6, 6, std::sin(x))
APPROXIMATE(Cosine, "cos.approx.f32 %0, %1;", -6, 6, std::cos(x))
APPROXIMATE(Tangent, "tanh.approx.f32 %0, %1;", -5, 5, std::tanh(x))
APPROXIMATE(Quotient, "div.approx.f32 %0, %1, 0f40400000;", -100, 100, x / 3)
APPROXIMATE(FullQuotient, "div.full.f32 %0, %1, 0f40400000;", -100, 100, x / 3)

// --- halves: all 2^16 values ---
template <class H>
__global__ void half_to_float(const u16* in, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  H h;
  memcpy(&h, in + i, 2);
  out[i] = static_cast<float>(h);
}
template <class H>
__global__ void float_to_half(const float* in, u16* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const H h(in[i]);
  memcpy(out + i, &h, 2);
}
// The value of a half from its fields.
double value_of(u16 h, int mantissa, int exponent_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, e = h >> mantissa & ((1 << exponent_bits) - 1),
            m = h & ((1 << mantissa) - 1);
  const double magnitude = e == (1 << exponent_bits) - 1 ? (m ? NAN : INFINITY)
                           : e == 0                      ? std::ldexp(m, 1 - bias - mantissa)
                                    : std::ldexp(m + (1 << mantissa), e - bias - mantissa);
  return h >> 15 ? -magnitude : magnitude;
}
template <class H>
void expect_conversions(int mantissa, int exponent_bits) {
  std::vector<u16> all(1 << 16);
  std::iota(all.begin(), all.end(), 0);
  DeviceArray<u16> in(all), back(all.size());
  DeviceArray<float> out(all.size());
  half_to_float<H><<<256, 256>>>(in, out);
  const std::vector<float> wide = out.host();
  for (size_t i = 0; i < all.size(); ++i) {
    const double expected = value_of(all[i], mantissa, exponent_bits);
    ASSERT_TRUE(std::isnan(expected) ? std::isnan(wide[i])
                                     : wide[i] == expected && std::signbit(wide[i]) == std::signbit(expected))
        << i;
  }
  // Half way between neighbours to the even one, just beside it to the nearer one.
  const u16 largest = static_cast<u16>(((1 << exponent_bits) - 1) << mantissa) - 1;
  std::vector<float> between;
  std::vector<u16> nearest;
  for (u16 h = 0; h < largest; ++h) {
    const double low = value_of(h, mantissa, exponent_bits), high = value_of(h + 1, mantissa, exponent_bits);
    const float middle = static_cast<float>((low + high) / 2);
    between.insert(between.end(),
                   {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY), -middle});
    const u16 even = h % 2 == 0 ? h : h + 1;
    nearest.insert(nearest.end(), {even, h, static_cast<u16>(h + 1), static_cast<u16>(even | 0x8000)});
  }
  between.resize(between.size() / 256 * 256);
  DeviceArray<float> middles(between);
  DeviceArray<u16> rounded(between.size());
  float_to_half<H><<<static_cast<unsigned>(between.size() / 256), 256>>>(middles, rounded);
  const std::vector<u16> got = rounded.host();
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], nearest[i]) << between[i];
}
TEST(Half, ConversionsOfAllF16) { expect_conversions<__half>(10, 5); }
TEST(Half, ConversionsOfAllBf16) { expect_conversions<__nv_bfloat16>(7, 8); }

template <class H>
__global__ void half_arithmetic(const float* a, const float* b, const float* c, float* out) {
  const int i = threadIdx.x;
  const H x(a[i]), y(b[i]), z(c[i]);
  out[4 * i] = static_cast<float>(__hadd(x, y));
  out[4 * i + 1] = static_cast<float>(__hmul(x, y));
  out[4 * i + 2] = static_cast<float>(__hfma(x, y, z));
  out[4 * i + 3] = static_cast<float>(__hsub(x, z));
}
// One rounding of the exact result, which double holds: the operands have at most 11 bits and lie within a
// few binades.
template <class H>
void expect_half_arithmetic(float (*rounded)(double)) {
  const auto a = reals(256, -8, 8, 1), b = reals(256, -8, 8, 2), c = reals(256, -8, 8, 3);
  DeviceArray<float> da(a), db(b), dc(c), out(1024);
  half_arithmetic<H><<<1, 256>>>(da, db, dc, out);
  const auto got = out.host();
  for (int i = 0; i < 256; ++i) {
    const double x = rounded(a[i]), y = rounded(b[i]), z = rounded(c[i]);
    EXPECT_EQ(got[4 * i], rounded(x + y)) << i;
    EXPECT_EQ(got[4 * i + 1], rounded(x * y)) << i;
    EXPECT_EQ(got[4 * i + 2], rounded(x * y + z)) << i;
    EXPECT_EQ(got[4 * i + 3], rounded(x - z)) << i;
  }
}
TEST(Half, ArithmeticF16) {
  expect_half_arithmetic<__half>([](double x) { return __half2float(__double2half(x)); });
}
TEST(Half, ArithmeticBf16) {
  expect_half_arithmetic<__nv_bfloat16>([](double x) { return __bfloat162float(__double2bfloat16(x)); });
}

}  // namespace
