// Training on the device goes as it goes on the CPU.

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "models/language/gpt2.h"
#include "models/vision/resnet.h"
#include "ops/cross_entropy.h"
#include "optim/adamw.h"
#include "optim/clip_grad.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

// What a training run leaves behind: the loss of every step, and the parameters.
struct TrainingRun {
  std::vector<double> losses;
  std::vector<std::vector<double>> parameters;
};

// Steps of AdamW with clipping on `loss`, a function of the model's inputs on its device. With the usual eps
// of 1e-8 the first step is lr * sign(g): a gradient near 0 whose rounding changes its sign moves a parameter
// by 2 lr, on whichever device. This eps, of the size of the gradients, bounds what a rounding of g does by
// lr / eps times that rounding.
TrainingRun train(nn::Module& model, int steps, const std::function<Tensor(int)>& loss) {
  TrainingRun run;
  optim::AdamW optimizer(optim::decay_groups(model.named_parameters(), 0.1), {.lr = 1e-3, .eps = 1e-4});
  for (int step = 0; step < steps; ++step) {
    const Tensor value = loss(step);
    value.backward();
    run.losses.push_back(value.item<double>());
    const double norm = optim::grad_norm(optimizer.parameters());
    optimizer.step({.grad_scale = optim::clip_scale(norm, 1.0)});
    optimizer.zero_grad();
  }
  for (const Tensor& parameter : model.parameters()) run.parameters.push_back(parameter.to_vector<double>());
  return run;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;  // NaN stays
  }
  return largest;
}

// Both fp32 runs start from the same weights and see the same batches; what fp64 arithmetic makes of them is
// the reference. The device may be twice as far from it as the CPU, and a rounding of a loss.
void expect_as_good_as_the_cpu(const TrainingRun& cuda, const TrainingRun& cpu,
                               const TrainingRun& reference) {
  const double loss_tolerance = 2 * largest_difference(cpu.losses, reference.losses)
                                + 4 * test::unit_roundoff(DType::f32) * reference.losses[0];
  EXPECT_LE(largest_difference(cuda.losses, reference.losses), loss_tolerance);
  ASSERT_LT(reference.losses.back(), reference.losses.front());
  double cpu_error = 0, cuda_error = 0;
  for (std::size_t i = 0; i < reference.parameters.size(); ++i) {
    cpu_error = std::max(cpu_error, largest_difference(cpu.parameters[i], reference.parameters[i]));
    cuda_error = std::max(cuda_error, largest_difference(cuda.parameters[i], reference.parameters[i]));
  }
  EXPECT_LE(cuda_error, 2 * cpu_error);
}

TEST(CudaTraining, TenStepsOfATwoLayerGptAgreeWithTheCpu) {
  const models::GPT2Config config{
      .vocab_size = 65, .context_length = 32, .hidden_size = 48, .num_layers = 2, .num_heads = 3};
  const auto run = [&](Device device, DType dtype) {
    manual_seed(5);
    models::GPT2 model(config);
    model.to(device);
    model.to(dtype);
    Generator generator(11);
    const Tensor text = randint(0, 65, {2, 33}, {DType::i32}, generator);  // to be learnt by heart
    return train(model, 10, [&](int) {
      return model.loss(text.slice(1, 0, 32).contiguous().to(device),
                        text.slice(1, 1, 33).contiguous().to(device));
    });
  };
  expect_as_good_as_the_cpu(run(Device::cuda(), DType::f32), run(Device::cpu(), DType::f32),
                            run(Device::cpu(), DType::f64));
}

TEST(CudaTraining, StepsOfASmallResNetAgreeWithTheCpu) {
  const auto run = [&](Device device, DType dtype) {
    manual_seed(5);
    models::ResNet model({.depth = 8, .width = 4, .in_channels = 1, .num_classes = 10});
    model.to(device);
    model.to(dtype);
    Generator generator(11);
    const Tensor images = randn({4, 1, 12, 12}, {}, generator).to(dtype).to(device);
    const Tensor labels = from_vector<std::int32_t>({0, 1, 2, 3}, {4}, {DType::i32, device});
    return train(model, 5, [&](int) { return ops::cross_entropy(model(images), labels); });
  };
  expect_as_good_as_the_cpu(run(Device::cuda(), DType::f32), run(Device::cpu(), DType::f32),
                            run(Device::cpu(), DType::f64));
}

// Determinism is the default: the same bits from the same seed.
TEST(CudaTraining, TwoRunsHaveTheSameBits) {
  const auto run = [] {
    manual_seed(5);
    models::GPT2 model({.vocab_size = 31,
                        .context_length = 16,
                        .hidden_size = 32,
                        .num_layers = 1,
                        .num_heads = 2,
                        .dropout = 0.2});
    model.to(Device::cuda());
    const Tensor tokens = full({2, 16}, 7, {DType::i32, Device::cuda()});
    return train(model, 2, [&](int) { return model.loss(tokens, tokens); });
  };
  const TrainingRun first = run(), second = run();
  EXPECT_EQ(first.losses, second.losses);
  EXPECT_EQ(first.parameters, second.parameters);
}

}  // namespace
}  // namespace ergon
