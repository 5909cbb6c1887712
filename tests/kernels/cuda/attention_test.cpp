// Attention's gradients in lower precision on the device. (tests/ops/attention_test.cpp has the rest.)

#include "ops/attention.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/support/reference.h"

namespace ergon {
namespace {

// Gradients of q, k and v, on the CPU as f64.
std::vector<std::vector<double>> gradients(const std::vector<Tensor>& operands, DType dtype, Device device) {
  std::vector<Tensor> in;
  for (std::size_t i = 0; i < 3; ++i)
    in.push_back(operands[i].to(dtype).to(device).detach().set_requires_grad(true));
  ops::scaled_dot_product_attention(in[0], in[1], in[2], {.causal = true})
      .backward(operands[3].to(dtype).to(device));
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

TEST(CudaAttention, GradientsAreAsExactAsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t head_dim : {5, 64, 72}) {
      std::vector<Tensor> operands;  // q, k, v, dout
      for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        const bool of_queries = seed == 1 || seed == 4;
        operands.push_back(test::uniform({2, of_queries ? 33 : 40, of_queries ? 4 : 2, head_dim},
                                         {.dtype = dtype, .seed = seed})
                               .to(Device::cpu()));
      }
      const auto expected = gradients(operands, DType::f64, Device::cpu());
      const auto cpu = gradients(operands, dtype, Device::cpu()),
                 cuda = gradients(operands, dtype, Device::cuda());
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_LE(largest_error(cuda[i], expected[i]), 2 * largest_error(cpu[i], expected[i]))
            << name_of(dtype) << " head_dim " << head_dim << " gradient " << i;
      }
    }
  }
}

TEST(CudaAttention, TooLargeAHeadIsAnError) {
  const Tensor q = zeros({1, 2, 1, 257}, {.device = Device::cuda()});
  EXPECT_EQ(test::error_of([&] { ops::scaled_dot_product_attention(q, q, q); }),
            "[attention] head_dim 257 on cuda: expected at most 256");
}

}  // namespace
}  // namespace ergon
