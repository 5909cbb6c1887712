#include "kernels/cpu/philox.h"

#include <gtest/gtest.h>

#include "core/random.h"

namespace ergon::kernels::cpu {
namespace {

TEST(Philox, SixteenCountersAtATimeAreTheScalarFunction) {
  for (std::uint64_t seed :
       {std::uint64_t{0}, std::uint64_t{42}, ~std::uint64_t{0}, std::uint64_t{1} << 32}) {
    for (std::uint64_t counter :
         {std::uint64_t{0}, std::uint64_t{7}, (std::uint64_t{1} << 32) - 9, ~std::uint64_t{0} - 3}) {
      for (std::uint64_t stream : {std::uint64_t{0}, (std::uint64_t{7} << 32) + 3}) {
        std::uint32_t words[64];
        philox_words(seed, counter, words, stream);
        for (std::uint64_t i = 0; i < 64; ++i) {
          ASSERT_EQ(words[i], philox4x32(seed, counter + i / 4, stream)[i % 4])
              << seed << " " << counter << " " << stream << " " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ergon::kernels::cpu
