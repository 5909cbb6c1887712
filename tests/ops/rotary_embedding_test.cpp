#include "ops/rotary_embedding.h"

#include <cmath>
#include <numbers>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/stream.h"
#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

// As Hugging Face's Llama writes it: x * cos + rotate_half(x) * sin, cos and sin of (frequencies,
// frequencies).
std::vector<double> reference(const Tensor& x, const RotaryOptions& options,
                              const std::vector<double>& frequencies, double direction = 1) {
  const std::vector<double> in = x.to_vector<double>();
  std::vector<double> out(in.size());
  const std::int64_t seqlen = x.size(1), heads = x.size(2), dim = x.size(3), half = dim / 2;
  std::vector<std::int64_t> positions;
  if (options.positions.defined()) positions = options.positions.to_vector<std::int64_t>();
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const std::int64_t c = i % dim, token = i / (dim * heads);  // b * seqlen + t
    const std::int64_t position = positions.empty()
                                      ? options.position_offset + token % seqlen
                                      : positions[static_cast<std::size_t>(token) % positions.size()];
    const std::int64_t pair = options.interleaved ? c / 2 : c % half;
    const bool first = options.interleaved ? c % 2 == 0 : c < half;
    const std::int64_t distance = options.interleaved ? 1 : half;
    const double partner = in[static_cast<std::size_t>(first ? i + distance : i - distance)];
    const double angle =
        direction * static_cast<double>(position) * frequencies[static_cast<std::size_t>(pair)];
    out[static_cast<std::size_t>(i)] =
        in[static_cast<std::size_t>(i)] * std::cos(angle) + (first ? -partner : partner) * std::sin(angle);
  }
  return out;
}

std::vector<double> plain_frequencies(double theta, std::int64_t dim) {
  std::vector<double> result;
  for (std::int64_t i = 0; i < dim; i += 2) {
    result.push_back(1 / std::pow(theta, static_cast<double>(i) / static_cast<double>(dim)));
  }
  return result;
}

TEST(RotaryEmbedding, MatchesFp64InEveryDtypeLayoutAndConvention) {
  for (DType dtype : kFloatingDTypes) {
    for (const Shape& shape : {Shape{1, 1, 1, 2}, Shape{2, 5, 3, 30}, Shape{2, 33, 2, 32}, Shape{1, 7, 4, 64},
                               Shape{3, 4, 1, 34}, Shape{2, 0, 2, 8}, Shape{2, 300, 1, 8}}) {
      const Tensor x = uniform(shape, {.dtype = dtype}), dout = uniform(shape, {.dtype = dtype, .seed = 2});
      Generator generator(4);
      std::vector<RotaryOptions> all;
      all.push_back({});
      all.push_back({.theta = 500000, .position_offset = 11});
      all.push_back({.interleaved = true});
      all.push_back({.positions = randint(0, 999, {shape[1]}, {DType::i32, device()}, generator)});
      all.push_back({.positions = randint(0, 999, {shape[0], shape[1]}, {DType::i64, device()}, generator),
                     .interleaved = true});
      for (const RotaryOptions& options : all) {
        const std::vector<double> frequencies = plain_frequencies(options.theta, shape.back());
        // Cosine, sine, two products and their sum are rounded: 5 roundings of at most |x1| + |x2| <= 4.
        const double unit = dtype == DType::f64 ? 4 * 0x1p-53 : 0x1p-24;
        // The reference's own angle (up to 1000 radians) is rounded in fp64.
        const Tolerance tolerance{.rtol = 1.01 * unit_roundoff(dtype),
                                  .atol = 20 * unit + 4000 * 0x1p-53 + underflow_error(dtype)};
        for (Layout layout : kLayouts) {
          SCOPED_TRACE(fmt::format("{} {} {}", name_of(dtype), shape, name_of(layout)));
          Tensor in = in_layout(x, layout).set_requires_grad(true);
          const Tensor y = rotary_embedding(in, options);
          EXPECT_TRUE(y.is_contiguous());
          EXPECT_TRUE(near(y, reference(x, options, frequencies), tolerance));
          y.backward(in_layout(dout, layout));
          EXPECT_TRUE(near(in.grad(), reference(dout, options, frequencies, -1), tolerance));
        }
      }
    }
  }
}

TEST(RotaryEmbedding, GradientsMatchDifferences) {
  const Tensor x = uniform({2, 3, 2, 6}, {.dtype = DType::f64});
  for (bool interleaved : {false, true}) {
    EXPECT_TRUE(gradients_match(
        [&](Inputs in) {
          return rotary_embedding(in[0], {.position_offset = 2, .interleaved = interleaved});
        },
        {x}));
  }
}

// Queries inside a packed projection, and heads before positions: strides other than the dense ones.
TEST(RotaryEmbedding, TakesViewsWithoutCopies) {
  const Tensor packed = uniform({2, 5, 3, 4, 8});
  const Tensor query = packed.select(2, 1);
  EXPECT_TRUE(equal_bits(rotary_embedding(query), rotary_embedding(query.contiguous())));
  const Tensor heads_first = uniform({2, 4, 5, 8}).transpose(1, 2);
  EXPECT_TRUE(equal_bits(rotary_embedding(heads_first), rotary_embedding(heads_first.contiguous())));
}

// The scores of rotated queries and keys depend on the distance alone.
TEST(RotaryEmbedding, ScoresDependOnTheDistance) {
  const Tensor q = uniform({1, 1, 1, 64}, {.dtype = DType::f64}),
               k = uniform({1, 1, 1, 64}, {.dtype = DType::f64, .seed = 2});
  const auto score = [&](std::int64_t at_q, std::int64_t at_k) {
    const std::vector<double> a = rotary_embedding(q, {.position_offset = at_q}).to_vector<double>();
    const std::vector<double> b = rotary_embedding(k, {.position_offset = at_k}).to_vector<double>();
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  EXPECT_NEAR(score(7, 3), score(1007, 1003), 1e-10);
  EXPECT_GT(std::fabs(score(7, 3) - score(7, 4)), 1e-3);
}

// Hugging Face's formula, by wavelength.
TEST(RotaryEmbedding, Llama3Scaling) {
  const Llama3RopeScaling scaling{
      .factor = 32, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position = 8192};
  const RotaryOptions options{.theta = 500000, .position_offset = 20000, .scaling = scaling};
  std::vector<double> frequencies = plain_frequencies(options.theta, 64);
  int kept = 0, mixed = 0, stretched = 0;
  for (double& frequency : frequencies) {
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < 8192.0 / 4) {
      ++kept;
    } else if (wavelength > 8192.0 / 1) {
      frequency /= 32, ++stretched;
    } else {
      const double smooth = (8192 / wavelength - 1) / (4 - 1);
      frequency = (1 - smooth) * frequency / 32 + smooth * frequency, ++mixed;
    }
  }
  EXPECT_TRUE(kept > 0 && mixed > 0 && stretched > 0);
  const Tensor x = uniform({1, 2, 1, 64}, {.dtype = DType::f64});
  EXPECT_TRUE(near(rotary_embedding(x, options), reference(x, options, frequencies), {.atol = 1e-10}));
}

TEST(RotaryEmbedding, SameBitsForAnyNumberOfThreads) {
  const Tensor x = uniform({4, 100, 6, 64});
  const auto run = [&] { return rotary_embedding(x); };
  EXPECT_TRUE(equal_bits(with_threads(3, run), with_threads(1, run)));
}

TEST(RotaryEmbedding, ErrorsNameShapesAndPositions) {
  const Tensor x = zeros({2, 3, 4, 8});
  const auto error = [&](const RotaryOptions& options) {
    return error_of([&] { rotary_embedding(x, options); });
  };
  EXPECT_EQ(error_of([] {
              rotary_embedding(zeros({2, 3, 4, 7}));
            }),
            "[rotary_embedding] x (2, 3, 4, 7): expected (batch, seqlen, num_heads, head_dim) with an even "
            "head_dim");
  EXPECT_EQ(
      error({.positions = zeros({4}, {DType::i64})}),
      "[rotary_embedding] x (2, 3, 4, 8) and positions (4,): expected positions (seqlen) or (batch, seqlen)");
  EXPECT_EQ(error({.positions = full({3}, -1, {DType::i64})}),
            "[rotary_embedding] positions -1 to -1: expected 0 to 4194303");
  EXPECT_EQ(error({.position_offset = 1 << 22}),
            "[rotary_embedding] positions 4194304 to 4194306: expected 0 to 4194303");
  EXPECT_EQ(error({.position_offset = 1, .positions = zeros({3}, {DType::i64})}),
            "[rotary_embedding] position_offset 1 together with positions: give one");
  EXPECT_EQ(error({.positions = zeros({3})}), "[rotary_embedding] positions are f32: expected i32 or i64");
  EXPECT_EQ(error({.theta = 0}), "[rotary_embedding] theta 0: expected a positive number");
}

// On a CUDA device positions are looked at by the kernel alone.
TEST(RotaryEmbedding, PositionsOnADeviceAreBelowALimit) {
  if (device().is_cpu()) GTEST_SKIP() << "positions on the CPU are checked before";
  const Tensor x = uniform({1, 2, 1, 8});
  const auto error = [&](std::int64_t position, std::int64_t max_positions) {
    return error_of([&] {
      rotary_embedding(x, {.positions = full({2}, static_cast<double>(position), {DType::i64, device()}),
                           .max_positions = max_positions});
      synchronize(device());
    });
  };
  EXPECT_EQ(error(8192, 8192), "[rotary_embedding] position 8192 at position 0: expected one in [0, 8192)");
  EXPECT_EQ(error(-1, 8192), "[rotary_embedding] position -1 at position 0: expected one in [0, 8192)");
  EXPECT_EQ(error(8192, 8193), "no error");
}

}  // namespace
}  // namespace ergon::ops
