// Attention's gradients in lower precision on the device, and what only the device sees of indices.
// (tests/ops/attention_test.cpp has the rest.)

#include "ops/attention.h"

#include <cmath>

#include <gtest/gtest.h>

#include "core/stream.h"
#include "kernels/cuda/common/launch.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

struct Case {
  DType dtype;
  std::int64_t batch, seqlen_q, seqlen_k, num_heads, num_heads_kv, head_dim;
  ops::AttentionOptions options = {.causal = true};
};

std::vector<Tensor> operands(const Case& c) {  // q, k, v, dout
  const Shape of_queries{c.batch, c.seqlen_q, c.num_heads, c.head_dim},
      of_keys{c.batch, c.seqlen_k, c.num_heads_kv, c.head_dim};
  std::vector<Tensor> result;
  for (const Shape& shape : {of_queries, of_keys, of_keys, of_queries}) {
    const std::uint64_t seed = result.size() + 1;
    result.push_back(test::uniform(shape, {.dtype = c.dtype, .seed = seed}).to(Device::cpu()));
  }
  return result;
}

// Of q, k and v, on the CPU as f64.
std::vector<std::vector<double>> gradients(const Case& c, DType dtype, Device device) {
  const std::vector<Tensor> given = operands(c);
  std::vector<Tensor> in;
  for (std::size_t i = 0; i < 3; ++i)
    in.push_back(given[i].to(dtype).to(device).detach().set_requires_grad(true));
  ops::scaled_dot_product_attention(in[0], in[1], in[2], c.options).backward(given[3].to(dtype).to(device));
  std::vector<std::vector<double>> result;
  for (const Tensor& tensor : in) result.push_back(tensor.grad().to_vector<double>());
  return result;
}

double largest_error(const std::vector<double>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(got[i] - expected[i]);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}

void expect_as_exact_as_the_cpus(const Case& c) {
  const auto expected = gradients(c, DType::f64, Device::cpu());
  const auto cpu = gradients(c, c.dtype, Device::cpu()), cuda = gradients(c, c.dtype, Device::cuda());
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_LE(largest_error(cuda[i], expected[i]), 2 * largest_error(cpu[i], expected[i]))
        << name_of(c.dtype) << " head_dim " << c.head_dim << " gradient " << i;
  }
}

TEST(CudaAttention, GradientsAreAsExactAsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t head_dim : {5, 64, 72})
      expect_as_exact_as_the_cpus({dtype, 2, 33, 40, 4, 2, head_dim});
  }
}

TEST(CudaAttention, ABlockTakesTileAfterTileOfKeys) {
  // More key/value heads than half the device's multiprocessors: a block for each, and three tiles of keys.
  const std::int64_t heads = kernels::cuda::device_limits().multiprocessors / 2 + 1;
  expect_as_exact_as_the_cpus({DType::bf16, 1, 20, 129, heads, heads, 256, {}});
}

TEST(CudaAttention, TilesOfKeysAddUpInAnyOrderIfAllowed) {
  expect_as_exact_as_the_cpus({DType::bf16, 1, 20, 300, 2, 2, 64, {.deterministic = false}});
}

using Indices = std::vector<std::int32_t>;

Tensor indices(const Indices& values, const Shape& shape) {
  return from_vector(values, shape, {DType::i32, Device::cuda()});
}

TEST(CudaAttention, CuSeqlensOutOfRangeAreNoted) {
  const std::string op = "[scaled_dot_product_attention_varlen] ";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor q = test::uniform({6, 2, 8}, {.dtype = dtype}).to(Device::cuda());
    const auto error = [&](const Indices& of_q, const Indices& of_k, std::int64_t longest) {
      const Shape shape{std::ssize(of_q)};
      return test::error_of([&] {
        ops::scaled_dot_product_attention_varlen(q, q, q, indices(of_q, shape), indices(of_k, shape), longest,
                                                 longest);
        synchronize(Device::cuda());
      });
    };
    EXPECT_EQ(error({1, 2, 6}, {0, 2, 6}, 6), op + "cu_seqlens_q 1 at position 0: expected one in [0, 1)");
    EXPECT_EQ(error({0, 2, 6}, {0, -3, 6}, 6), op + "cu_seqlens_k -3 at position 1: expected one in [0, 7)");
    EXPECT_EQ(error({0, 6, 4}, {0, 2, 6}, 6), op + "cu_seqlens_q 4 at position 2: expected one in [6, 7)");
    EXPECT_EQ(error({0, 2, 6}, {0, 2, 5}, 6), op + "cu_seqlens_k 5 at position 2: expected one in [6, 7)");
    EXPECT_EQ(error({0, 2, 6}, {0, 7000000, 6}, 6),
              op + "cu_seqlens_k 7000000 at position 1: expected one in [0, 7)");
    EXPECT_EQ(error({0, 2, 6}, {0, 3, 6}, 3),
              op + "length by cu_seqlens_q 4 at position 1: expected one in [0, 4)");
    EXPECT_EQ(error({0, 2, 6}, {0, 3, 6}, 6), "no error");
  }
}

TEST(CudaAttention, ACacheOutOfRangeIsNoted) {
  const std::string op = "[scaled_dot_product_attention_with_cache] ";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor q = test::uniform({2, 1, 2, 8}, {.dtype = dtype}).to(Device::cuda()),
                 kv = test::uniform({2, 10, 2, 8}, {.dtype = dtype, .seed = 2}).to(Device::cuda());
    Tensor o;
    const auto error = [&](const Indices& seqlens_k, const Tensor& block_table = {}) {
      return test::error_of([&] {
        o = ops::scaled_dot_product_attention_with_cache(q, {kv, kv, indices(seqlens_k, {2}), block_table});
        synchronize(Device::cuda());
      });
    };
    EXPECT_EQ(error({3, 10}), "no error");
    const Tensor good = o;
    EXPECT_EQ(error({3, 11}), op + "seqlens_k 11 at position 1: expected one in [0, 11)");
    EXPECT_TRUE(equal_bits(o[0], good[0]));  // the other item is none the worse
    EXPECT_EQ(error({-1, 10}), op + "seqlens_k -1 at position 0: expected one in [0, 11)");
    EXPECT_TRUE(equal_bits(o[1], good[1]));
    EXPECT_EQ(error({3, 10}, indices({1, 2}, {2, 1})),
              op + "block_table 2 at position 1: expected one in [0, 2)");
    EXPECT_EQ(error({3, 11}, indices({1, -1, 0, 70000}, {2, 2})),
              op + "block_table 70000 at position 3: expected one in [0, 2)");
  }
}

TEST(CudaAttention, TooLargeAHeadIsAnError) {
  const Tensor q = zeros({1, 2, 1, 257}, {.device = Device::cuda()});
  EXPECT_EQ(test::error_of([&] { ops::scaled_dot_product_attention(q, q, q); }),
            "[attention] head_dim 257 on cuda: expected at most 256");
}

}  // namespace
}  // namespace ergon
