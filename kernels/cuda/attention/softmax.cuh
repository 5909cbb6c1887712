#pragma once

// Probabilities by powers of 2, in fp32.

namespace ergon::kernels::cuda::attention_detail {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Running maximum and sum of the rows of a fragment: the sum of this lane's keys only.
struct RowStatistics {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  // Turns scores (times log2(e) / scale) into probabilities that are relative to the new maximum, and `o`
  // too.
  template <int kScores, int kResults>
  __device__ __forceinline__ void update(float (&s)[kScores][4], float (&o)[kResults][4], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float larger = max[half];
#pragma unroll
      for (int n = 0; n < kScores; ++n) larger = fmaxf(larger, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      larger = fmaxf(larger, __shfl_xor_sync(0xffffffffu, larger, 1));
      larger = fmaxf(larger, __shfl_xor_sync(0xffffffffu, larger, 2));
      const float base = exponent_base(larger, scale);
      const float correction = exp2_approx(max[half] * scale - base);
      max[half] = larger;
      sum[half] *= correction;
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          s[n][e] = exp2_approx(s[n][e] * scale - base);
          sum[half] += s[n][e];
        }
      }
#pragma unroll
      for (int n = 0; n < kResults; ++n) {
        o[n][2 * half] *= correction;
        o[n][2 * half + 1] *= correction;
      }
    }
  }
  // A row without keys so far has no maximum to subtract.
  __device__ __forceinline__ static float exponent_base(float max, float scale) {
    return max == -INFINITY ? 0.0f : max * scale;
  }
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    }
  }
  __device__ __forceinline__ float lse(int half, float scale) const {
    return (exponent_base(max[half], scale) + log2f(sum[half])) * kLn2;
  }
};

}  // namespace ergon::kernels::cuda::attention_detail
