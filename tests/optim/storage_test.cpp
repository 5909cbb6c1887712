// How optimisers keep weights and states: masters, stochastic rounding, bf16 and 8-bit states.

#include <bit>
#include <cmath>
#include <numeric>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "kernels/dynamic_code.h"
#include "ops/arithmetic.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "optim/adamw.h"
#include "optim/sgd.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using test::error_of;

Tensor parameter(const Shape& shape, DType dtype, std::uint64_t seed = 1) {
  return test::uniform(shape, {.dtype = dtype, .seed = seed}).set_requires_grad(true);
}

void set_gradient(Tensor& param, std::uint64_t seed) {
  param.set_grad(test::uniform(param.shape(), {.dtype = param.dtype(), .seed = seed}));
}

Tensor state_of(const optim::Optimizer& optimizer, const std::string& key) {
  for (const auto& [name, tensor] : optimizer.state_dict()) {
    if (name == key) return tensor;
  }
  ADD_FAILURE() << "no state " << key;
  return {};
}

TEST(MasterWeights, AreUpdatedInFp32AndTheParameterIsTheirRounding) {
  const optim::AdamWOptions o{.lr = 1e-3, .beta2 = 0.99, .weight_decay = 0.1, .master_weights = true};
  constexpr int kSteps = 4;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const std::int64_t size : {1, 255, 256, 16385}) {
      Tensor param = parameter({size}, dtype);
      std::vector<double> p = param.to_vector<double>(), m(p.size()), v(p.size());
      optim::AdamW optimizer(NamedTensors{{"w", param}}, o);
      for (int step = 1; step <= kSteps; ++step) {
        set_gradient(param, static_cast<std::uint64_t>(step) + 7);
        const std::vector<double> grad = param.grad().to_vector<double>();
        for (std::size_t i = 0; i < p.size(); ++i) {
          p[i] *= 1 - o.lr * o.weight_decay;
          m[i] = o.beta1 * m[i] + (1 - o.beta1) * grad[i];
          v[i] = o.beta2 * v[i] + (1 - o.beta2) * grad[i] * grad[i];
          p[i] -= o.lr / (1 - std::pow(o.beta1, step)) * m[i]
                  / (std::sqrt(v[i] / (1 - std::pow(o.beta2, step))) + o.eps);
        }
        optimizer.step();
      }
      const Tensor master = state_of(optimizer, "master.w");
      // Two roundings of a number below 2 a step, and about 13 of a step of at most 4 lr.
      const double bound = kSteps * (4 + 60 * o.lr) * 0x1p-24;
      EXPECT_TRUE(test::near(master, p, {.atol = bound})) << name_of(dtype) << " " << size;
      EXPECT_TRUE(equal_bits(param.detach(), master.to(dtype)));
      EXPECT_TRUE(equal_bits(optimizer.master_parameters()[0].second, master));
    }
  }
}

TEST(MasterWeights, SmallStepsAddUp) {
  // A step of 1e-4 is lost next to 1 in bf16, whose neighbours are 2^-8 and 2^-7 away.
  for (const bool masters : {false, true}) {
    Tensor param = ones({8}, {DType::bf16, test::device(), true});
    optim::SGD optimizer(NamedTensors{{"w", param}}, {.lr = 1e-4, .master_weights = masters});
    for (int i = 0; i < 100; ++i) {
      param.set_grad(ones({8}, {DType::bf16, test::device()}));
      optimizer.step();
    }
    EXPECT_EQ(param.to_vector<double>()[0], masters ? 1 - 3 * 0x1p-8 : 1.0);  // 0.99, rounded
  }
}

TEST(MasterWeights, AreTakenFromNewValuesOfTheParameter) {
  Tensor param = parameter({300}, DType::bf16);
  optim::SGD optimizer(NamedTensors{{"w", param}}, {.lr = 1e-5, .master_weights = true});
  const auto step = [&] {
    set_gradient(param, 5);
    optimizer.step();
  };
  step();
  const Tensor exact = state_of(optimizer, "master.w").clone();
  {
    NoGradGuard no_grad;
    param.copy_(param.detach().clone());  // the same values: the master stays
  }
  param.set_grad(zeros({300}, {DType::bf16, test::device()}));
  optimizer.step();
  EXPECT_TRUE(equal_bits(state_of(optimizer, "master.w"), exact));
  {
    NoGradGuard no_grad;
    param.fill_(3);
  }
  param.set_grad(zeros({300}, {DType::bf16, test::device()}));
  optimizer.step();
  EXPECT_TRUE(test::near(state_of(optimizer, "master.w"), full({300}, 3)));
}

// bf16 next to `value` with as many bits dropped as the word says.
double rounded(float value, std::uint32_t word) {
  const std::uint32_t bits = (std::bit_cast<std::uint32_t>(value) + (word >> 16)) & 0xffff0000u;
  return static_cast<double>(std::bit_cast<float>(bits));
}

TEST(StochasticRounding, HasTheSameBitsEverywhereAndIsUnbiased) {
  constexpr std::int64_t kSize = 40001;  // the last row is short
  constexpr std::uint64_t kSeed = 0x123456789abcdefull;
  Tensor first = zeros({3}, {DType::bf16, test::device(), true});
  Tensor param = zeros({kSize}, {DType::bf16, test::device(), true});
  optim::SGD optimizer(NamedTensors{{"first", first}, {"w", param}},
                       {.lr = 0.7, .stochastic_rounding = true, .seed = kSeed});
  const float value = -static_cast<float>(0.7);  // where each element goes, between -0.69921875 and -0.703125
  std::vector<std::vector<double>> results;
  for (std::uint64_t step = 1; step <= 2; ++step) {
    {
      NoGradGuard no_grad;
      param.zero_();
    }
    param.set_grad(ones({kSize}, {DType::bf16, test::device()}));
    first.set_grad(zeros({3}, {DType::bf16, test::device()}));
    optimizer.step();
    results.push_back(param.to_vector<double>());
    std::vector<double> expected;
    for (std::uint64_t i = 0; i < kSize; ++i) {
      const std::uint64_t stream = (std::uint64_t{4} << 32) + step;  // tensor 1, the parameter itself
      expected.push_back(rounded(value, philox4x32(kSeed, i / 4, stream)[i % 4]));
    }
    EXPECT_TRUE(test::near(param, expected));
    const double mean = std::accumulate(expected.begin(), expected.end(), 0.0) / kSize;
    // The mean of kSize numbers with a standard deviation of at most half the distance of the neighbours.
    EXPECT_NEAR(mean, double(value), 5 * 0x1p-9 / std::sqrt(double(kSize)));
  }
  EXPECT_NE(results[0], results[1]);
}

TEST(StochasticRounding, LeavesWhatIsExactAndPassesInfinityOn) {
  const TensorOptions there{DType::bf16, test::device()};
  Tensor param = from_vector<float>({1, -2, 0, 1, 1}, {5}, there).set_requires_grad(true);
  optim::SGD optimizer(NamedTensors{{"w", param}}, {.lr = 1, .stochastic_rounding = true});
  param.set_grad(from_vector<float>({0, 0, 0, INFINITY, NAN}, {5}, there));
  optimizer.step();
  EXPECT_TRUE(test::near(param, std::vector<double>{1, -2, 0, -INFINITY, NAN}));
}

// The values that codes and scales stand for.
template <bool kSigned>
std::vector<double> decoded(const Tensor& codes, const Tensor& scales) {
  constexpr auto values = kernels::DynamicCode<kSigned>::values();
  const std::vector<float> scale = scales.to_vector<float>();
  std::vector<double> result;
  for (const std::int64_t code : codes.to_vector<std::int64_t>()) {
    result.push_back(double(values[static_cast<std::size_t>(code)]) * double(scale[result.size() / 256]));
  }
  return result;
}

TEST(States, EightBitCodesAreWithinTheirBoundBlockByBlock) {
  constexpr std::int64_t kSize = 5000;  // 19 blocks and one of 136
  Tensor param = parameter({kSize}, DType::f32), small = parameter({4095}, DType::f32);
  optim::AdamW optimizer(NamedTensors{{"w", param}, {"small", small}}, {.state_dtype = DType::u8});
  // Blocks of very different magnitude, and one of zeros.
  std::vector<float> grad = test::uniform({kSize}, {.seed = 3}).to_vector<float>();
  for (std::size_t i = 0; i < kSize; ++i) {
    grad[i] = i / 256 == 4 ? 0 : grad[i] * std::ldexp(1.0f, static_cast<int>(i / 256) - 10);
  }
  param.set_grad(from_vector<float>(grad, {kSize}, {DType::f32, test::device()}));
  set_gradient(small, 4);
  optimizer.step();
  EXPECT_EQ(state_of(optimizer, "exp_avg.small").dtype(), DType::f32);
  const Tensor codes = state_of(optimizer, "exp_avg.w"), scales = state_of(optimizer, "exp_avg_scale.w");
  const Tensor square_codes = state_of(optimizer, "exp_avg_sq.w"),
               square_scales = state_of(optimizer, "exp_avg_sq_scale.w");
  EXPECT_EQ(codes.dtype(), DType::u8);
  EXPECT_EQ(scales.shape(), Shape({20}));
  std::vector<double> m, v, m_bound, v_bound;
  for (std::size_t i = 0; i < kSize; ++i) {
    m.push_back(0.1 * double(grad[i]));
    v.push_back(0.001 * double(grad[i]) * double(grad[i]));
  }
  const auto bounds = [](const std::vector<double>& values,
                         int top) {  // half of the widest interval of a block
    std::vector<double> result;
    for (std::size_t i = 0; i < values.size(); ++i) {
      double largest = 0;
      for (std::size_t k = i / 256 * 256; k < std::min<std::size_t>(values.size(), i / 256 * 256 + 256);
           ++k) {
        largest = std::max(largest, std::abs(values[k]));
      }
      result.push_back(largest * (0.45 / top + 1e-5));
    }
    return result;
  };
  const auto got_m = decoded<true>(codes, scales), got_v = decoded<false>(square_codes, square_scales);
  EXPECT_TRUE(test::near_each(from_vector<double>(got_m, {kSize}, {DType::f64}), m, bounds(m, 64)));
  EXPECT_TRUE(test::near_each(from_vector<double>(got_v, {kSize}, {DType::f64}), v, bounds(v, 128)));
  for (std::size_t i = 0; i < kSize; ++i) EXPECT_EQ(got_v[i] == 0, grad[i] == 0) << i;
}

TEST(States, Bf16MovingAverageMovesByStepsBelowItsPrecision) {
  // exp_avg_sq of a gradient that falls from 1 to 0: beta2^t after t more steps, in expectation.
  constexpr std::int64_t kSize = 4096;
  constexpr int kSteps = 60;
  Tensor param = zeros({kSize}, {DType::f32, test::device(), true});
  optim::AdamW optimizer(NamedTensors{{"w", param}}, {.beta2 = 0.999, .state_dtype = DType::bf16});
  const auto step = [&](double grad) {
    param.set_grad(full({kSize}, grad, {DType::f32, test::device()}));
    optimizer.step();
  };
  step(1);
  for (int i = 0; i < kSteps; ++i) step(0);
  EXPECT_EQ(state_of(optimizer, "exp_avg_sq.w").dtype(), DType::bf16);
  const std::vector<double> v = state_of(optimizer, "exp_avg_sq.w").to_vector<double>();
  const double mean = std::accumulate(v.begin(), v.end(), 0.0) / kSize;
  // Each rounding moves a number by less than 2^-7 of it, and has no bias: the sum's deviation is below
  // sqrt(steps) / 2 of that, the mean's smaller by sqrt(kSize).
  const double exact = 1e-3 * std::pow(0.999, kSteps);
  EXPECT_NEAR(mean, exact, 5 * exact * 0x1p-8 * std::sqrt(kSteps / double(kSize)));
  EXPECT_LT(mean, 0.97e-3);
}

struct Recipe {
  const char* name;
  DType dtype;
  optim::AdamWOptions options;
};
const Recipe kRecipes[] = {
    {"fp32", DType::f32, {}},
    {"bf16 + masters", DType::bf16, {.master_weights = true}},
    {"f16 + masters + 8-bit", DType::f16, {.master_weights = true, .state_dtype = DType::u8}},
    {"fp32 + 8-bit", DType::f32, {.state_dtype = DType::u8}},
    {"fp32 + bf16 states", DType::f32, {.state_dtype = DType::bf16}},
    {"bf16 stochastic + 8-bit", DType::bf16, {.stochastic_rounding = true, .state_dtype = DType::u8}},
    {"bf16 stochastic + bf16 states", DType::bf16, {.stochastic_rounding = true, .state_dtype = DType::bf16}},
};

TEST(Storage, EveryRecipeTrainsToAComparableLoss) {
  const Tensor x = test::uniform({48, 64}, {.seed = 2});
  const Tensor target = ops::matmul(x, test::uniform({64, 64}, {.seed = 3}) * 0.1);
  double fp32 = 0, start = 0;
  for (const Recipe& recipe : kRecipes) {
    Tensor w = zeros({64, 64}, {recipe.dtype, test::device(), true});
    optim::AdamWOptions options = recipe.options;
    options.weight_decay = 0;
    optim::AdamW optimizer(NamedTensors{{"w", w}}, options);
    double loss = 0;
    for (int step = 0; step < 60; ++step) {
      optimizer.set_learning_rate(0.01 * (1 - step / 60.0));
      const Tensor difference = ops::matmul(x, w.to(DType::f32)) - target;
      const Tensor mean = ops::mean(difference * difference);
      mean.backward();
      optimizer.step();
      optimizer.zero_grad();
      loss = mean.item<double>();
      if (step == 0) start = loss;
    }
    if (fp32 == 0) fp32 = loss;
    EXPECT_LT(loss, 0.02 * start) << recipe.name;
    // Weights of about 0.1 in bf16 are wrong by 2^-9 of that each: 64 of them with x of variance 4 / 3 add
    // about 64 * 4 / 3 * (0.1 * 2^-9)^2 = 3e-6 to the loss; the states' rounding changes the way there.
    EXPECT_LT(loss, 1.5 * fp32 + 1e-5) << recipe.name;
  }
}

TEST(Storage, ResumedStateGivesTheSameBits) {
  for (const Recipe& recipe : kRecipes) {
    const auto run = [&](int resume_at) {
      Tensor param = parameter({4500}, recipe.dtype), bias = parameter({30}, recipe.dtype, 2);
      const NamedTensors params{{"w", param}, {"b", bias}};
      auto optimizer = std::make_unique<optim::AdamW>(params, recipe.options);
      for (int step = 0; step < 4; ++step) {
        if (step == resume_at) {
          NamedTensors saved;
          for (const auto& [name, tensor] : optimizer->state_dict()) {
            saved.emplace_back(name, tensor.to(Device::cpu()).clone());
          }
          optimizer = std::make_unique<optim::AdamW>(params, recipe.options);
          optimizer->load_state_dict(saved);
        }
        set_gradient(param, static_cast<std::uint64_t>(step) + 10);
        set_gradient(bias, static_cast<std::uint64_t>(step) + 20);
        optimizer->step();
      }
      NamedTensors end = optimizer->state_dict();
      end.emplace_back("w", param.detach());
      return end;
    };
    const NamedTensors whole = run(-1), resumed = run(2);
    ASSERT_EQ(whole.size(), resumed.size());
    for (std::size_t i = 0; i < whole.size(); ++i) {
      EXPECT_TRUE(equal_bits(whole[i].second, resumed[i].second)) << recipe.name << " " << whole[i].first;
    }
  }
}

TEST(Storage, ErrorsNameWhatIsWrong) {
  const Tensor w = parameter({5000}, DType::bf16), half = parameter({4}, DType::f16);
  const auto adamw = [](const Tensor& param, const optim::AdamWOptions& options) {
    return std::make_unique<optim::AdamW>(NamedTensors{{"w", param}}, options);
  };
  EXPECT_EQ(error_of([&] { adamw(w, {.master_weights = true, .stochastic_rounding = true}); }),
            "[AdamW] master_weights and stochastic_rounding: expected one of them");
  EXPECT_EQ(error_of([&] { adamw(w, {.state_dtype = DType::f16}); }),
            "[AdamW] state_dtype is f16: expected f32, bf16 or u8");
  EXPECT_EQ(error_of([&] { adamw(half, {.stochastic_rounding = true}); }),
            "[AdamW] stochastic_rounding and parameter w of f16: expected bf16, or master_weights");
  const NamedTensors plain = adamw(w, {})->state_dict();
  EXPECT_EQ(error_of([&] { adamw(w, {.state_dtype = DType::u8})->load_state_dict(plain); }),
            "[optimizer] state exp_avg.w: expected (5000,) u8, got (5000,) f32");
  EXPECT_EQ(error_of([&] { adamw(w, {.master_weights = true})->load_state_dict(plain); }),
            "[optimizer] state master.w of shape (5000,) is missing");
  EXPECT_EQ(
      error_of([&] { adamw(w, {})->load_state_dict(adamw(w, {.master_weights = true})->state_dict()); }),
      "[optimizer] the state has 4 tensors, expected 3: it is of other parameters or options");
}

}  // namespace
}  // namespace ergon
