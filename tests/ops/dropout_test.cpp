#include "ops/dropout.h"

#include <cmath>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

// The definition, one word at a time.
std::vector<double> reference(const Tensor& x, double p, PhiloxState stream) {
  std::vector<double> y = x.to_vector<double>();
  for (std::size_t i = 0; i < y.size(); ++i) {
    const float u = uniform_from_bits(philox4x32(stream.seed, stream.offset + i / 4)[i % 4]);
    y[i] = u >= p ? y[i] / (1 - p) : 0;
  }
  return y;
}

TEST(Dropout, KeepsWhatTheStreamSaysInEveryDtypeAndLayout) {
  for (DType dtype : kFloatingDTypes) {
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{3}, Shape{5, 13}, Shape{64}, Shape{65}, Shape{2, 511},
                               Shape{1024}, Shape{41, 25}, Shape{100, 333}, Shape{0, 3}}) {
      for (double p : {0.1, 0.5, 0.999}) {
        const Tensor x = uniform(shape, {.dtype = dtype});
        const Tensor dout = uniform(shape, {.dtype = dtype, .seed = 2});
        for (Layout layout : kLayouts) {
          SCOPED_TRACE(fmt::format("{} {} {} {}", name_of(dtype), shape, p, name_of(layout)));
          Generator generator(17);
          // Counters that cross 2^32, where the carry goes to the second word.
          generator.set_state({99, (std::uint64_t{1} << 32) - 5});
          const PhiloxState stream = generator.state();
          Tensor in = in_layout(x, layout).set_requires_grad(true);
          const Tensor y = dropout(in, p, true, generator);
          EXPECT_EQ(generator.state().offset, stream.offset + static_cast<std::uint64_t>(x.numel() + 3) / 4);
          // 1 / (1 - p) and the product are rounded, and the result once more in half precision.
          const double unit = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
          const Tolerance tolerance{.rtol = 3 * unit + 1.01 * unit_roundoff(dtype),
                                    .atol = underflow_error(dtype)};
          EXPECT_TRUE(near(y, reference(x, p, stream), tolerance));
          y.backward(in_layout(dout, layout));
          EXPECT_TRUE(near(in.grad(), reference(dout, p, stream), tolerance));
        }
      }
    }
  }
}

// kept iff u >= p, exactly: p is not rounded to fp32 on the way.
TEST(Dropout, ComparesWithoutRounding) {
  const Tensor x = ones({4}, {.device = device()});
  const PhiloxState stream = Generator(17).state();
  const double u = uniform_from_bits(philox4x32(stream.seed, stream.offset)[0]);
  for (double p : {u, std::nextafter(u, 1), std::nextafter(u, 0)}) {
    Generator generator(17);
    EXPECT_EQ(dropout(x, p, true, generator).to_vector<double>()[0] != 0, u >= p) << p - u;
  }
}

TEST(Dropout, GradientsMatchDifferences) {
  EXPECT_TRUE(gradients_match(
      [](Inputs in) {
        Generator generator(5);
        return dropout(in[0], 0.4, true, generator);
      },
      {uniform({4, 9}, {.dtype = DType::f64})}));
}

TEST(Dropout, IdentityAndZeros) {
  Generator generator(1);
  const Tensor x = uniform({10});
  EXPECT_TRUE(dropout(x, 0, true, generator).is_same(x));
  EXPECT_TRUE(dropout(x, 0.5, false, generator).is_same(x));
  EXPECT_EQ(generator.state().offset, 0u);
  Tensor bad =
      from_vector(std::vector<float>{NAN, INFINITY, 3}, {3}, {.device = device()}).set_requires_grad(true);
  const Tensor y = dropout(bad, 1, true, generator);
  EXPECT_TRUE(near(y, std::vector<double>{0, 0, 0}));
  y.backward(ones({3}, {.device = device()}));
  EXPECT_TRUE(near(bad.grad(), std::vector<double>{0, 0, 0}));
}

TEST(Dropout, SameSeedSameBitsForAnyNumberOfThreads) {
  const Tensor x = uniform({333, 301});
  const auto run = [&] {
    manual_seed(7);
    return dropout(x, 0.3);
  };
  const Tensor expected = with_threads(1, run);
  for (int threads : {2, 3, 8}) EXPECT_TRUE(equal_bits(with_threads(threads, run), expected)) << threads;
  EXPECT_FALSE(equal_bits(dropout(x, 0.3), expected)) << "the next call goes on in the stream";
}

TEST(Dropout, TheBitsAreTheCpus) {
  for (DType dtype : kFloatingDTypes) {
    const Tensor x = uniform({5, 1023}, {.dtype = dtype});
    for (double p : {0.1, 1.0 / 3, 0.9}) {
      const auto run = [&](const Tensor& in) {
        Generator generator(11);
        return dropout(in, p, true, generator);
      };
      EXPECT_TRUE(equal_bits(run(x), run(x.to(Device::cpu())))) << name_of(dtype) << p;
    }
  }
}

TEST(Dropout, DropsTheRightShare) {
  manual_seed(3);
  const Tensor y = dropout(ones({1000000}, {.device = device()}), 0.3);
  double kept = 0;
  for (float value : y.to_vector<float>()) kept += value != 0;
  EXPECT_NEAR(kept / 1e6, 0.7, 5 * std::sqrt(0.3 * 0.7 / 1e6));
}

TEST(Dropout, ErrorsNameTheProbability) {
  EXPECT_EQ(error_of([] { dropout(zeros({2}), 1.5); }), "[dropout] p 1.5: expected a probability in [0, 1]");
  EXPECT_EQ(error_of([] { dropout(zeros({2}), NAN); }), "[dropout] p nan: expected a probability in [0, 1]");
  EXPECT_EQ(error_of([] { dropout(zeros({2}, {DType::i64}), 0.5); }),
            "[dropout] x is i64: expected one of f32, bf16, f16, f64");
}

}  // namespace
}  // namespace ergon::ops
