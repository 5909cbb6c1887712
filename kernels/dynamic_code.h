#pragma once

// The dynamic 8-bit code of Dettmers et al. 2022 ("8-bit optimizers via block-wise quantization", arXiv
// 2110.02861): seven decades below 1, each cut into equal intervals, twice as many in every decade as in the
// one below it; a number is stored as the centre of its interval. 0 and 1 have codes of their own.
//
//   decade [10^-(e+1), 10^-e], e = 0..6:  n = kTop / 2^e intervals of 0.9 / n * 10^-e
//   signed:   [-1, 1], kTop = 64, codes 127 - 127 .. 127 + 128 (-1 shares the code of its neighbours)
//   unsigned: [0, 1], kTop = 128, codes 0 .. 255
// |x - decode(encode(x))| <= 0.45 / n * 10^-e within a decade, 1e-7 below the lowest. Unsigned, a positive
// number never becomes 0 but the lowest code, 3.25e-7: a second moment that vanished would make the step
// explode.

#include <array>
#include <cstdint>

namespace ergon::kernels {

// Elements that share a scale, their largest magnitude.
inline constexpr int kCodeBlock = 256;

template <bool kSigned>
struct DynamicCode {
  static constexpr int kTop = kSigned ? 64 : 128;
  static constexpr int kZero = kSigned ? 127 : 0;

  // x in [-1, 1], or [0, 1]. NaN has some code.
  static constexpr int encode(float x) {
    const float magnitude = x < 0 ? -x : x;
    // The interval's number is floor(magnitude * factor + shift): factor = n / 0.9 * 10^e, shift = 8 / 9 * n,
    // rounded up so that 1 falls above the last interval.
    constexpr float kOffset = kSigned ? 0.0f : -1.0f;
    float next_factor = kTop / 0.9f, next_shift = 0.888889f * kTop, bound = 0.1f;
    float factor = next_factor, shift = next_shift;
    for (int decade = 1; decade < 7; ++decade) {
      next_factor *= 5;
      next_shift *= 0.5f;
      factor = magnitude < bound ? next_factor : factor;
      shift = magnitude < bound ? next_shift : shift;
      bound *= 0.1f;
    }
    const float position = magnitude * factor + (shift + kOffset);
    const int number = static_cast<int>(position < 2.0f * kTop ? position : 2.0f * kTop + kOffset);
    if constexpr (kSigned) {
      const int code = x < 0 ? 127 - number : 127 + number;
      return code < 0 ? 0 : code;
    } else {
      return number == 0 && x > 0 ? 1 : number;
    }
  }

  // By code.
  static constexpr std::array<float, 256> values() {
    std::array<float, 256> table{};
    for (int code = 0; code < 256; ++code) {
      const int distance = code < kZero ? kZero - code : code - kZero;
      if (distance > 0) {
        const double value = centre(kSigned ? distance : distance + 1);
        table[static_cast<std::size_t>(code)] = static_cast<float>(code < kZero ? -value : value);
      }
    }
    return table;
  }

 private:
  // The intervals of the decade with n of them have the numbers n .. 2 n - 1.
  static constexpr double centre(int number) {
    if (number == 2 * kTop) return 1;
    int n = kTop;
    double scale = 1;
    for (; n > number; n /= 2) scale *= 0.1;
    return scale * (0.1 + 0.9 * (number - n + 0.5) / n);
  }
};

// |values| of blocks of kCodeBlock elements: how many scales a tensor has.
constexpr std::int64_t code_blocks(std::int64_t numel) { return (numel + kCodeBlock - 1) / kCodeBlock; }

}  // namespace ergon::kernels
