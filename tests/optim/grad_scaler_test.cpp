#include "optim/grad_scaler.h"

#include <cmath>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "ops/reduce.h"
#include "optim/adamw.h"
#include "optim/clip_grad.h"
#include "optim/sgd.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using test::error_of;

const TensorOptions kThere{.device = test::device()};

Tensor parameter(std::uint64_t seed, std::int64_t size = 300) {
  return test::uniform({size}, {.seed = seed}).set_requires_grad(true);
}

// sum(p * x): its gradient is x.
Tensor loss_of(const Tensor& p, std::uint64_t seed) {
  return ops::sum(p * test::uniform(p.shape(), {.seed = seed}));
}

TEST(GradScaler, AStepIsTheUnscaledStepToTheBit) {
  for (const bool unscale : {false, true}) {
    Tensor plain = parameter(1), scaled = parameter(1);
    optim::AdamW plain_optimizer(NamedTensors{{"p", plain}}), scaled_optimizer(NamedTensors{{"p", scaled}});
    optim::GradScaler scaler({.init_scale = 1024});
    for (std::uint64_t step = 0; step < 3; ++step) {
      for (const std::uint64_t micro_batch : {2 * step, 2 * step + 1}) {  // accumulated
        loss_of(plain, micro_batch).backward();
        scaler.scale(loss_of(scaled, micro_batch)).backward();
      }
      const double norm = optim::grad_norm({plain});
      plain_optimizer.step();
      Tensor scaled_norm;
      if (unscale) {
        scaled_norm = scaler.unscale(scaled_optimizer);
        EXPECT_TRUE(equal_bits(scaled.grad(), plain.grad()));
        scaler.step(scaled_optimizer);
      } else {
        scaled_norm = scaler.step(scaled_optimizer);
      }
      scaler.update();
      EXPECT_EQ(scaled_norm.item<double>(), norm);
      EXPECT_TRUE(equal_bits(plain.detach(), scaled.detach()));
      plain_optimizer.zero_grad();
      scaled_optimizer.zero_grad();
    }
  }
}

TEST(GradScaler, ClipsTheUnscaledGradients) {
  Tensor plain = parameter(1), scaled = parameter(1), large = parameter(2, 40000);
  const Tensor twin = large.detach().clone().set_requires_grad(true);
  optim::SGD plain_optimizer(NamedTensors{{"p", plain}, {"q", large}}, {.lr = 1});
  optim::SGD scaled_optimizer(NamedTensors{{"p", scaled}, {"q", twin}}, {.lr = 1});
  (loss_of(plain, 4) + loss_of(large, 5)).backward();
  const double norm = optim::clip_grad_norm({plain, large}, 2);
  plain_optimizer.step();
  optim::GradScaler scaler;
  scaler.scale(loss_of(scaled, 4) + loss_of(twin, 5)).backward();
  EXPECT_NEAR(scaler.step(scaled_optimizer, {.max_norm = 2}).item<double>(), norm, 1e-12 * norm);
  // The factor is rounded once, and applied and subtracted with a rounding each; values below 4.
  EXPECT_TRUE(test::near(scaled.detach(), plain.detach(), {.atol = 4 * 4 * 0x1p-24}));
  EXPECT_TRUE(test::near(twin.detach(), large.detach(), {.atol = 4 * 4 * 0x1p-24}));
}

TEST(GradScaler, SkipsAStepWithInfOrNanAndDoesNotCountIt) {
  for (const double bad : std::initializer_list<double>{INFINITY, -INFINITY, NAN}) {
    Tensor fresh = parameter(1, 20000), param = parameter(1, 20000), other = parameter(2, 5);
    optim::AdamW optimizer(NamedTensors{{"p", param}, {"o", other}});
    optim::AdamW fresh_optimizer(NamedTensors{{"p", fresh}});
    optim::GradScaler scaler({.init_scale = 8, .growth_interval = 2});
    const Tensor before = param.detach().clone();
    param.set_grad(zeros({20000}, kThere));
    param.grad().select(0, 19999).fill_(bad);
    other.set_grad(ones({5}, kThere));
    scaler.step(optimizer, {.max_norm = 1});
    scaler.update();
    EXPECT_TRUE(equal_bits(param.detach(), before));
    for (const auto& [name, state] : optimizer.state_dict()) {
      EXPECT_TRUE(test::near(state, zeros(state.shape()))) << name;
    }
    EXPECT_EQ(optimizer.steps(), 0);
    EXPECT_EQ(scaler.get_scale(), 4);
    EXPECT_EQ(scaler.state().skipped_steps, 1);
    EXPECT_EQ(scaler.state().consecutive_skips, 1);
    optimizer.zero_grad();
    // The next one is the first: bias correction has not moved.
    for (int step = 0; step < 2; ++step) {
      loss_of(fresh, 3).backward();
      fresh_optimizer.step();
      fresh_optimizer.zero_grad();
      scaler.scale(loss_of(param, 3)).backward();
      scaler.step(optimizer);
      scaler.update();
      optimizer.zero_grad();
    }
    EXPECT_TRUE(equal_bits(param.detach(), fresh.detach()));
    EXPECT_EQ(optimizer.steps(), 2);
    const optim::GradScalerState state = scaler.state();
    EXPECT_EQ(state.scale, 8);  // grown after two good steps
    EXPECT_EQ(state.good_steps, 0);
    EXPECT_EQ(state.consecutive_skips, 0);
    EXPECT_EQ(state.skipped_steps, 1);
  }
}

TEST(GradScaler, MomentumStartsWithTheFirstStepMade) {
  Tensor param = zeros({4}, {.device = test::device(), .requires_grad = true});
  optim::SGD optimizer(NamedTensors{{"p", param}}, {.lr = 1, .momentum = 0.9, .dampening = 0.5});
  optim::GradScaler scaler({.init_scale = 2});
  for (const double grad : {double(INFINITY), 1.0}) {
    param.set_grad(full({4}, grad, kThere));
    scaler.step(optimizer);
    scaler.update();
  }
  EXPECT_TRUE(test::near(param.detach(), full({4}, -1)));  // the scale is 1 now; no dampening at first
}

TEST(GradScaler, OneOfTwoOptimisersIsSkipped) {
  Tensor a = zeros({4}, {.device = test::device(), .requires_grad = true});
  Tensor b = zeros({4}, {.device = test::device(), .requires_grad = true});
  optim::SGD first(NamedTensors{{"a", a}}, {.lr = 1}), second(NamedTensors{{"b", b}}, {.lr = 1});
  optim::GradScaler scaler({.init_scale = 2});
  a.set_grad(full({4}, 2, kThere));
  b.set_grad(full({4}, NAN, kThere));
  scaler.step(first);
  scaler.step(second);
  scaler.update();
  EXPECT_TRUE(test::near(a.detach(), full({4}, -1)));
  EXPECT_TRUE(test::near(b.detach(), zeros({4})));
  EXPECT_EQ(scaler.get_scale(), 1);
}

TEST(GradScaler, TheHookDecidesForAllRanks) {
  Tensor param = zeros({4}, {.device = test::device(), .requires_grad = true});
  optim::SGD optimizer(NamedTensors{{"p", param}}, {.lr = 1});
  optim::GradScaler scaler({.init_scale = 2});
  int calls = 0;
  scaler.set_found_inf_hook([&](Tensor found_inf) {
    EXPECT_EQ(found_inf.item<double>(), 0);
    found_inf.fill_(++calls);  // another rank has found one
  });
  param.set_grad(ones({4}, kThere));
  scaler.step(optimizer);
  scaler.update();
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(test::near(param.detach(), zeros({4})));
  EXPECT_EQ(scaler.state().skipped_steps, 1);
}

TEST(GradScaler, StateComesBack) {
  optim::GradScaler scaler({.init_scale = 8});
  const optim::GradScalerState saved{
      .scale = 0.125, .good_steps = 5, .skipped_steps = 7, .consecutive_skips = 2};
  scaler.load_state(saved);
  const optim::GradScalerState state = scaler.state();
  EXPECT_EQ(state.scale, 0.125);
  EXPECT_EQ(state.good_steps, 5);
  EXPECT_EQ(state.skipped_steps, 7);
  EXPECT_EQ(state.consecutive_skips, 2);
}

TEST(GradScaler, TheScaleStaysFinite) {
  Tensor param = zeros({4}, {.device = test::device(), .requires_grad = true});
  optim::SGD optimizer(NamedTensors{{"p", param}}, {.lr = 1});
  optim::GradScaler scaler({.init_scale = 0x1p127, .growth_interval = 1});
  param.set_grad(zeros({4}, kThere));
  scaler.step(optimizer);
  scaler.update();
  EXPECT_EQ(scaler.get_scale(), 0x1p127);
}

TEST(GradScaler, AHalfPrecisionLossIsScaledInFp32) {
  const Tensor loss = full({}, 3, {DType::f16, test::device()});
  const Tensor scaled = optim::GradScaler().scale(loss);
  EXPECT_EQ(scaled.dtype(), DType::f32);
  EXPECT_EQ(scaled.item<double>(), 3 * 65536.0);
}

TEST(GradScaler, ErrorsNameWhatIsWrong) {
  EXPECT_EQ(error_of([] { optim::GradScaler({.init_scale = 0}); }),
            "[GradScaler] the scale is 0: expected a positive fp32 number");
  EXPECT_EQ(error_of([] { optim::GradScaler({.growth_factor = 1}); }),
            "[GradScaler] growth_factor is 1: expected a number above 1");
  EXPECT_EQ(error_of([] { optim::GradScaler({.backoff_factor = 1}); }),
            "[GradScaler] backoff_factor is 1: expected a number in (0, 1)");
  EXPECT_EQ(error_of([] { optim::GradScaler({.growth_interval = 0}); }),
            "[GradScaler] growth_interval is 0: expected 1 or more");
  Tensor param = parameter(1, 4);
  optim::SGD optimizer(NamedTensors{{"p", param}}, {.lr = 1});
  optim::GradScaler scaler;
  EXPECT_EQ(error_of([&] { scaler.update(); }), "[GradScaler::update] called before a step()");
  EXPECT_EQ(error_of([&] { scaler.step(optimizer); }),
            "[GradScaler::step] no parameter has a gradient: call backward first");
  param.set_grad(ones({4}, kThere));
  scaler.unscale(optimizer);
  EXPECT_EQ(error_of([&] { scaler.unscale(optimizer); }),
            "[GradScaler::unscale] called after unscale() of the same optimiser: expected update() between");
  EXPECT_EQ(
      error_of([&] { scaler.step(optimizer, {.max_norm = 1}); }),
      "[GradScaler::step] max_norm is 1 after unscale(): clip with clip_grad_norm(), or leave unscale() out");
  scaler.step(optimizer);
  EXPECT_EQ(error_of([&] { scaler.step(optimizer); }),
            "[GradScaler::step] called twice for the same optimiser: expected update() between");
  Tensor half = zeros({2, 3}, {DType::f16, test::device(), true});
  optim::SGD half_optimizer(NamedTensors{{"h", half}}, {.lr = 1});
  half.set_grad(zeros({2, 3}, {DType::f16, test::device()}));
  EXPECT_EQ(error_of([&] { scaler.unscale(half_optimizer); }),
            "[GradScaler::unscale] a gradient of shape (2, 3) is f16, which would lose small values: leave "
            "unscale() out, step() can clip");
}

}  // namespace
}  // namespace ergon
