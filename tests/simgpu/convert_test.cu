// Conversions against an independent implementation: the destination's values as a sorted table, in which the
// nearest, the next below and the next above are looked up. Of the 2^32 floats every 4,093rd, and those
// around each half.
#include <algorithm>
#include <cmath>
#include <cstring>

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
uint16_t expected(const std::vector<double>& values, float x, Mode mode) {
  const bool negative = std::signbit(x);
  const double magnitude = std::fabs(static_cast<double>(x));
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
TEST(Convert, FloatToBfloatNearest) { check(bf16_rn, 8, 7, Mode::kNearest); }

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

}  // namespace
