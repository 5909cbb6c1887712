#include "ops/embedding.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/stream.h"
#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

struct Case {
  std::int64_t vocab, features;
  Shape indices;
};
const Case kCases[] = {{1, 1, {1}},     {7, 15, {3, 5}}, {65, 16, {2, 2, 9}}, {40, 17, {300}},
                       {9, 1100, {20}}, {5, 33, {}},     {4, 8, {0}},         {3000, 64, {50}}};

Tensor some_indices(const Case& c, DType dtype) {
  Generator generator(3);
  return randint(0, c.vocab, c.indices, {dtype, device()}, generator);
}

TEST(Embedding, GathersRowsInEveryDtypeAndLayout) {
  for (DType dtype : kFloatingDTypes) {
    for (const Case& c : kCases) {
      const Tensor weight = uniform({c.vocab, c.features}, {.dtype = dtype});
      for (DType index_dtype : {DType::i32, DType::i64}) {
        const Tensor indices = some_indices(c, index_dtype);
        const std::vector<std::int64_t> rows = indices.to_vector<std::int64_t>();
        for (Layout layout : kLayouts) {
          const Tensor y = embedding(in_layout(weight, layout), in_layout(indices, layout));
          Shape expected = c.indices;
          expected.push_back(c.features);
          ASSERT_EQ(y.shape(), expected);
          const Tensor flat = y.view({-1, c.features});
          for (std::size_t i = 0; i < rows.size(); ++i) {
            ASSERT_TRUE(equal_bits(flat.select(0, static_cast<std::int64_t>(i)), weight.select(0, rows[i])));
          }
        }
      }
    }
  }
}

// Sums of whole numbers are exact in fp32; half precision rounds them once, at the end.
TEST(Embedding, GradientAddsUpEveryUseOfARow) {
  for (DType dtype : kFloatingDTypes) {
    for (const Case& c : kCases) {
      const Tensor indices = some_indices(c, DType::i64);
      const std::vector<std::int64_t> rows = indices.to_vector<std::int64_t>();
      Shape shape = c.indices;
      shape.push_back(c.features);
      const Tensor dout = integers(shape, {.dtype = dtype, .low = -99, .high = 100});
      const std::vector<double> d = dout.to_vector<double>();
      std::vector<double> expected(static_cast<std::size_t>(c.vocab * c.features));
      const auto features = static_cast<std::size_t>(c.features);
      for (std::size_t i = 0; i < d.size(); ++i) {
        expected[static_cast<std::size_t>(rows[i / features]) * features + i % features] += d[i];
      }
      const Tensor rounded = from_vector(expected, {c.vocab, c.features}, {dtype, device()});
      for (Layout layout : kLayouts) {
        Tensor weight =
            in_layout(uniform({c.vocab, c.features}, {.dtype = dtype}), layout).set_requires_grad(true);
        embedding(weight, indices).backward(in_layout(dout, layout));
        EXPECT_TRUE(near(weight.grad(), rounded)) << name_of(dtype) << c.vocab << name_of(layout);
      }
    }
  }
}

TEST(Embedding, GradientsMatchDifferences) {
  const Tensor indices =
      from_vector(std::vector<std::int64_t>{2, 0, 2, 3, 2, 0}, {2, 3}, {DType::i64, device()});
  EXPECT_TRUE(gradients_match([&](Inputs in) { return embedding(in[0], indices); },
                              {uniform({5, 4}, {.dtype = DType::f64})}));
}

TEST(Embedding, GradientIsTheSameBitsForAnyNumberOfThreads) {
  const Case c{50, 200, {2000}};
  const Tensor indices = some_indices(c, DType::i32), dout = uniform({2000, 200});
  const auto run = [&] {
    Tensor weight = zeros({c.vocab, c.features}, {.device = device()}).set_requires_grad(true);
    embedding(weight, indices).backward(dout);
    return weight.grad();
  };
  const Tensor expected = with_threads(1, run);
  for (int threads : {2, 3, 8}) EXPECT_TRUE(equal_bits(with_threads(threads, run), expected)) << threads;
}

// Both devices add up the uses of a row in order: the same bits.
TEST(Embedding, GradientHasTheBitsOfTheOrderOfPositions) {
  const Case c{300, 12, {2500}};
  const Tensor indices = some_indices(c, DType::i64), dout = uniform({2500, 12});
  Tensor weight = zeros({c.vocab, c.features}, {.device = device()}).set_requires_grad(true);
  embedding(weight, indices).backward(dout);
  const std::vector<std::int64_t> rows = indices.to_vector<std::int64_t>();
  const std::vector<float> d = dout.to_vector<float>();
  std::vector<float> expected(static_cast<std::size_t>(c.vocab * c.features));
  for (std::size_t i = 0; i < d.size(); ++i)
    expected[static_cast<std::size_t>(rows[i / 12]) * 12 + i % 12] += d[i];
  EXPECT_TRUE(equal_bits(weight.grad(), from_vector(expected, {c.vocab, c.features})));
}

TEST(Embedding, ErrorsNameIndexAndVocabulary) {
  const Tensor weight = zeros({5, 2}, {.device = device()});
  const auto error = [&](const std::vector<std::int64_t>& indices, DType dtype = DType::i64) {
    const auto size = static_cast<std::int64_t>(indices.size());
    return error_of([&] {
      embedding(weight, from_vector(indices, {size}, {dtype, device()}));
      synchronize(device());
    });
  };
  const bool cpu = device().is_cpu();
  EXPECT_EQ(error({0, 4, 5}), cpu ? "[embedding] index 5 at position 2 of 3: expected 0 to 4"
                                  : "[embedding] index 5 at position 2: expected one in [0, 5)");
  EXPECT_EQ(error({-1}, DType::i32), cpu ? "[embedding] index -1 at position 0 of 1: expected 0 to 4"
                                         : "[embedding] index -1 at position 0: expected one in [0, 5)");
  EXPECT_EQ(error({1}, DType::f32), "[embedding] indices are f32: expected i32 or i64");
  EXPECT_EQ(error_of([] { embedding(zeros({3}), zeros({1}, {DType::i64})); }),
            "[embedding] weight (3,): expected (vocab, features)");
}

}  // namespace
}  // namespace ergon::ops
