#include <cmath>
#include <functional>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "ops/reduce.h"
#include "optim/adamw.h"
#include "optim/clip_grad.h"
#include "optim/schedule.h"
#include "optim/sgd.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using test::error_of;

const TensorOptions kThere{.device = test::device()};
const TensorOptions kLeaf{.device = test::device(), .requires_grad = true};

Tensor parameter(const Shape& shape, DType dtype, std::uint64_t seed) {
  return test::uniform(shape, {.dtype = dtype, .seed = seed}).set_requires_grad(true);
}

void set_gradient(Tensor& param, std::uint64_t seed) {
  param.set_grad(test::uniform(param.shape(), {.dtype = param.dtype(), .seed = seed}));
}

// PyTorch's AdamW in fp64, for parameters that are rounded to their dtype after each step.
struct AdamReference {
  std::vector<double> p, m, v;
  void step(const std::vector<double>& grad, const optim::AdamWOptions& o, int number, double scale) {
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double g = grad[i] * scale;
      p[i] *= 1 - o.lr * o.weight_decay;
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
      p[i] -= o.lr / (1 - std::pow(o.beta1, number)) * m[i]
              / (std::sqrt(v[i] / (1 - std::pow(o.beta2, number))) + o.eps);
    }
  }
};

TEST(AdamW, FollowsTheReferenceForEveryDtypeAndManyTensors) {
  const optim::AdamWOptions options{.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1};
  constexpr int kSteps = 5;
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const std::vector<Shape> shapes{{1}, {31}, {257}, {40000}, {3, 5}, {0}};
    NamedTensors params;
    std::vector<AdamReference> references;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      params.emplace_back("p" + std::to_string(i), parameter(shapes[i], dtype, i + 1));
      const std::vector<double> p = params.back().second.to_vector<double>();
      references.push_back({p, std::vector<double>(p.size()), std::vector<double>(p.size())});
    }
    optim::AdamW optimizer(params, options);
    for (int step = 1; step <= kSteps; ++step) {
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        set_gradient(params[i].second, static_cast<std::uint64_t>(100 * step) + i);
        references[i].step(params[i].second.grad().to_vector<double>(), options, step, 0.5);
      }
      optimizer.step({.grad_scale = 0.5});
    }
    // A step rounds about ten times in the arithmetic type, on values below 2 (the parameter) and steps of at
    // most 4 lr; and once to the parameter's dtype.
    const double acc = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
    const double bound = kSteps * (4 * acc + 40 * options.lr * acc + 2 * test::unit_roundoff(dtype));
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      EXPECT_TRUE(test::near(params[i].second, references[i].p, {.atol = bound}))
          << name_of(dtype) << " tensor " << i;
    }
  }
}

TEST(SGD, FollowsTheReference) {
  for (const optim::SGDOptions& o : {optim::SGDOptions{.lr = 0.1, .weight_decay = 0.01},
                                     optim::SGDOptions{.lr = 0.1, .momentum = 0.9, .dampening = 0.3},
                                     optim::SGDOptions{.lr = 0.1, .momentum = 0.9, .nesterov = true}}) {
    Tensor param = parameter({1000}, DType::f32, 1);
    std::vector<double> p = param.to_vector<double>(), buffer(p.size());
    optim::SGD optimizer({{"p", param}}, o);
    for (int step = 1; step <= 4; ++step) {
      set_gradient(param, static_cast<std::uint64_t>(step));
      const std::vector<double> grad = param.grad().to_vector<double>();
      for (std::size_t i = 0; i < p.size(); ++i) {
        const double g = grad[i] + o.weight_decay * p[i];
        buffer[i] = step == 1 ? g : o.momentum * buffer[i] + (1 - o.dampening) * g;
        p[i] -= o.lr * (o.momentum == 0 ? g : o.nesterov ? g + o.momentum * buffer[i] : buffer[i]);
      }
      optimizer.step();
    }
    EXPECT_TRUE(test::near(param, p, {.atol = 4 * 8 * 4 * 0x1p-24}))
        << "momentum " << o.momentum;  // 8 roundings a step, values below 4
  }
}

TEST(Optimizer, FindsTheMinimumOfAQuadratic) {
  const Tensor target = from_vector<float>({1, -2, 3}, {3}, kThere);
  const auto distance =
      [&](const std::function<std::unique_ptr<optim::Optimizer>(const NamedTensors&)>& make) {
        Tensor x = zeros({3}, kLeaf);
        const auto optimizer = make({{"x", x}});
        for (int i = 0; i < 400; ++i) {
          const Tensor difference = x - target;
          ops::sum(difference * difference).backward();
          optimizer->step();
          optimizer->zero_grad();
        }
        NoGradGuard no_grad;
        return ops::sum((x - target) * (x - target)).item<double>();
      };
  EXPECT_LT(distance([](const NamedTensors& p) {
              return std::make_unique<optim::SGD>(p, optim::SGDOptions{.lr = 0.05, .momentum = 0.9});
            }),
            1e-6);
  EXPECT_LT(distance([](const NamedTensors& p) {
              return std::make_unique<optim::AdamW>(p, optim::AdamWOptions{.lr = 0.05, .weight_decay = 0});
            }),
            1e-4);
}

TEST(Optimizer, GroupsHaveTheirOwnDecayAndRate) {
  Tensor matrix = ones({2, 2}, kLeaf), vector = ones({2}, kLeaf);
  optim::AdamW optimizer(optim::decay_groups({{"matrix", matrix}, {"vector", vector}}, 0.5), {.lr = 0.1});
  matrix.set_grad(zeros({2, 2}, kThere));
  vector.set_grad(zeros({2}, kThere));
  optimizer.step();
  EXPECT_TRUE(test::near(matrix, full({2, 2}, 1 - 0.05, kThere), {.rtol = 2 * 0x1p-24}));
  EXPECT_TRUE(test::near(vector, ones({2})));
  Tensor fast = ones({1}, kLeaf);
  optim::SGD scaled({{.params = {{"fast", fast}}, .lr_scale = 10}}, {.lr = 0.01});
  fast.set_grad(ones({1}, kThere));
  scaled.step();
  EXPECT_NEAR(fast.item<double>(), 0.9, 1e-7);
}

TEST(Optimizer, ParametersWithoutGradientStayAsTheyAre) {
  Tensor used = parameter({4}, DType::f32, 1), unused = parameter({4}, DType::f32, 2);
  const Tensor before = unused.detach().clone();
  optim::AdamW optimizer(NamedTensors{{"used", used}, {"unused", unused}}, {.weight_decay = 0.5});
  set_gradient(used, 3);
  optimizer.step();
  EXPECT_TRUE(equal_bits(before, unused.detach()));
}

TEST(Optimizer, ResumedStateGivesTheSameBits) {
  const auto run = [](int resume_at) {
    Tensor param = parameter({300}, DType::f32, 1);
    auto optimizer = std::make_unique<optim::AdamW>(NamedTensors{{"w", param}});
    for (int step = 0; step < 6; ++step) {
      if (step == resume_at) {
        NamedTensors saved;
        for (const auto& [name, tensor] : optimizer->state_dict()) saved.emplace_back(name, tensor.clone());
        optimizer = std::make_unique<optim::AdamW>(NamedTensors{{"w", param}});
        optimizer->load_state_dict(saved);
        EXPECT_EQ(optimizer->steps(), step);
      }
      set_gradient(param, static_cast<std::uint64_t>(step) + 10);
      optimizer->step();
    }
    return param.detach();
  };
  EXPECT_TRUE(equal_bits(run(-1), run(3)));
}

TEST(Optimizer, ErrorsNameWhatIsWrong) {
  Tensor w = parameter({4}, DType::f32, 1);
  EXPECT_EQ(error_of([&] {
              optim::AdamW(NamedTensors{{"w", w}}, {.lr = -1});
            }),
            "[AdamW] lr is -1: expected 0 or more");
  EXPECT_EQ(error_of([&] {
              optim::AdamW(NamedTensors{{"w", w}}, {.beta2 = 1});
            }),
            "[AdamW] beta2 is 1: expected a number in [0, 1)");
  EXPECT_EQ(error_of([&] {
              optim::AdamW(NamedTensors{{"w", w}, {"v", w}});
            }),
            "[optimizer] parameter v is listed twice");
  EXPECT_EQ(error_of([&] { optim::AdamW(NamedTensors{}); }), "[optimizer] no parameters");
  EXPECT_EQ(error_of([&] {
              optim::SGD(NamedTensors{{"w", w}}, {.nesterov = true});
            }),
            "[SGD] nesterov with momentum 0 and dampening 0: expected momentum and no dampening");
  optim::AdamW optimizer(NamedTensors{{"w", w}});
  NamedTensors state = optimizer.state_dict();
  EXPECT_EQ(error_of([&] {
              optimizer.load_state_dict({state[0], state[1]});
            }),
            "[optimizer] state exp_avg_sq.w of shape (4,) is missing");
  state[1].second = zeros({5});
  EXPECT_EQ(error_of([&] { optimizer.load_state_dict(state); }),
            "[optimizer] state exp_avg.w: expected (4,) f32, got (5,) f32");
}

TEST(Optimizer, AccumulatedMicroBatchesEqualOneBatch) {
  const Tensor data = test::uniform({8, 3}, {.dtype = DType::f64});
  const auto gradient = [&](std::int64_t pieces) {
    Tensor w = ones({3}, {.dtype = DType::f64, .device = test::device(), .requires_grad = true});
    for (const Tensor& piece : chunk(data, pieces, 0)) {
      const Tensor loss = ops::mean(ops::mul(piece, w) * piece);
      (loss * (1.0 / static_cast<double>(pieces))).backward();
    }
    return w.grad();
  };
  EXPECT_TRUE(test::near(gradient(4), gradient(1), {.rtol = 16 * 0x1p-53}));
}

TEST(ClipGrad, NormAndScale) {
  Tensor a = zeros({3}, kLeaf), b = zeros({70000}, kLeaf), none = zeros({2}, kLeaf);
  a.set_grad(from_vector<float>({3, 0, 4}, {3}, kThere));
  b.set_grad(full({70000}, 2, kThere));
  const double expected = std::sqrt(25 + 4 * 70000.0);
  EXPECT_NEAR(optim::grad_norm({a, b, none}), expected, 1e-9);
  EXPECT_NEAR(optim::clip_grad_norm({a, b, none}, 1.0), expected, 1e-9);
  EXPECT_NEAR(optim::grad_norm({a, b, none}), 1.0, 1e-5);
  EXPECT_EQ(optim::clip_scale(0.5, 1.0), 1.0);
  EXPECT_EQ(optim::clip_scale(7, 0), 1.0);
  a.set_grad(full({3}, NAN, kThere));
  EXPECT_TRUE(std::isnan(optim::clip_grad_norm({a, b}, 1.0)));
}

TEST(Schedule, ShapesAndEnds) {
  const optim::Schedule cosine = optim::cosine({.lr = 1, .min_lr = 0.1, .warmup = 4, .steps = 104});
  EXPECT_DOUBLE_EQ(cosine(0), 0.25);
  EXPECT_DOUBLE_EQ(cosine(3), 1);
  EXPECT_DOUBLE_EQ(cosine(4), 1);
  EXPECT_DOUBLE_EQ(cosine(54), 0.55);
  EXPECT_DOUBLE_EQ(cosine(104), 0.1);
  EXPECT_DOUBLE_EQ(cosine(1000), 0.1);
  const optim::Schedule linear = optim::linear({.lr = 1, .steps = 10});
  EXPECT_DOUBLE_EQ(linear(0), 1);
  EXPECT_DOUBLE_EQ(linear(5), 0.5);
  const optim::Schedule wsd =
      optim::warmup_stable_decay({.lr = 1, .warmup = 2, .steps = 20, .decay_steps = 4});
  EXPECT_DOUBLE_EQ(wsd(15), 1);
  EXPECT_DOUBLE_EQ(wsd(17), 0.5);
  EXPECT_DOUBLE_EQ(wsd(20), 0);
  EXPECT_DOUBLE_EQ(optim::constant({.lr = 0.3, .warmup = 2})(1000), 0.3);
  EXPECT_EQ(error_of([] { optim::cosine({.lr = 1, .warmup = 5, .steps = 4}); }),
            "[cosine] 5 steps of warm-up and 0 of decay do not fit in 4 steps");
  EXPECT_EQ(error_of([] { optim::linear({.lr = 1, .min_lr = 2, .steps = 4}); }),
            "[linear] min_lr is 2: expected a number in [0, lr = 1]");
}

}  // namespace
}  // namespace ergon
