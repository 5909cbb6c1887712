#pragma once

// A sum of exponentials whose largest exponent is found along the way (Milakov and Gimelshein, arXiv
// 1805.02867).

namespace ergon::device {

// sum of exp(x) = exp(max) * sum. NaN is passed over in the maximum: the sum has it.
template <class Acc>
struct ExpSum {
  Acc max = -INFINITY;
  Acc sum = 0;

  // What to subtract from exponents: finite unless one of them is +inf.
  __device__ __forceinline__ static Acc shift(Acc max) { return max == -INFINITY ? Acc(0) : max; }

  template <int kCount>
  __device__ __forceinline__ void add(const Acc (&x)[kCount]) {  // -inf adds nothing
    Acc larger = max;
#pragma unroll
    for (int i = 0; i < kCount; ++i) larger = x[i] > larger ? x[i] : larger;
    rescale(larger);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += exp(x[i] - shift(larger));
  }
  // To a larger maximum.
  __device__ __forceinline__ void rescale(Acc larger) {
    sum *= exp(max - shift(larger));
    max = larger;
  }
};

}  // namespace ergon::device
