#include "core/autocast.h"

#include <thread>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using autocast::class_of;

Tensor weight_of(const Shape& shape) {
  Tensor weight = test::uniform(shape);
  weight.set_requires_grad(true);
  return weight;
}

// The dtype in which an op of this class takes one operand.
DType taken_as(std::string_view op, const Tensor& operand) {
  const DType dtype = autocast::cast(op, operand)[0].dtype();
  EXPECT_EQ(autocast::dtype_for(op, operand), dtype);
  return dtype;
}

TEST(Autocast, EveryClassConvertsItsOperands) {
  const Tensor f32 = test::uniform({3}), bf16 = test::uniform({3}, {.dtype = DType::bf16}),
               f64 = test::uniform({3}, {.dtype = DType::f64}),
               i64 = test::integers({3}, {.dtype = DType::i64});
  const Autocast guard(DType::bf16);
  EXPECT_EQ(taken_as("matmul", f32), DType::bf16);
  EXPECT_EQ(taken_as("softmax", bf16), DType::f32);
  EXPECT_EQ(taken_as("softmax", f32), DType::f32);
  EXPECT_EQ(taken_as("add", bf16), DType::bf16);
  for (const char* op : {"matmul", "softmax", "add"}) {
    EXPECT_EQ(taken_as(op, f64), DType::f64);
    EXPECT_EQ(taken_as(op, i64), DType::i64);
  }
  const auto [a, b, none] = autocast::cast("add", bf16, f32, Tensor());
  EXPECT_EQ(a.dtype(), DType::f32);
  EXPECT_EQ(b.dtype(), DType::f32);
  EXPECT_FALSE(none.defined());
}

TEST(Autocast, ScopesNestAndF32SwitchesThemOff) {
  const Tensor f32 = test::uniform({3}), f16 = f32.to(DType::f16);
  EXPECT_EQ(taken_as("matmul", f32), DType::f32);
  {
    const Autocast outer(DType::bf16);
    {
      const Autocast off(DType::f32);
      EXPECT_EQ(taken_as("matmul", f32), DType::f32);
      EXPECT_EQ(taken_as("matmul", f16), DType::f32);
      const Autocast inner(DType::f16);
      EXPECT_EQ(taken_as("matmul", f32), DType::f16);
    }
    EXPECT_EQ(taken_as("matmul", f32), DType::bf16);
  }
  EXPECT_EQ(taken_as("matmul", f32), DType::f32);
  EXPECT_EQ(taken_as("matmul", f16), DType::f16);
}

TEST(Autocast, IsForItsThreadAndDevice) {
  const Tensor tensor = test::uniform({3});
  const DeviceType here = test::device().type,
                   other = here == DeviceType::cpu ? DeviceType::cuda : DeviceType::cpu;
  {
    const Autocast guard(DType::bf16, other);
    EXPECT_EQ(taken_as("matmul", tensor), DType::f32);
    const Autocast both(DType::f16, here);
    EXPECT_EQ(taken_as("matmul", tensor), DType::f16);
    EXPECT_EQ(autocast::state()[static_cast<std::size_t>(other)], DType::bf16);
  }
  const Autocast guard(DType::bf16);
  DType elsewhere = DType::f64;
  std::thread([&] { elsewhere = taken_as("matmul", tensor); }).join();
  EXPECT_EQ(elsewhere, DType::f32);
}

TEST(Autocast, OpsOfOnesOwnHaveAClass) {
  EXPECT_EQ(class_of("autocast_test_op"), OpClass::widest);
  autocast::register_op("autocast_test_op", OpClass::lower);
  autocast::register_op("autocast_test_op", OpClass::lower);
  EXPECT_EQ(class_of("autocast_test_op"), OpClass::lower);
  EXPECT_EQ(test::error_of([] { autocast::register_op("autocast_test_op", OpClass::fp32); }),
            "[autocast] op autocast_test_op is registered with another class already");
  EXPECT_EQ(test::error_of([] { Autocast(DType::f64); }), "[autocast] dtype f64: expected bf16, f16 or f32");
}

TEST(Autocast, WeightsAreConvertedOnceInAScope) {
  Tensor weight = weight_of({5});
  const auto copy_of = [](const Tensor& tensor) { return autocast::cast("matmul", tensor)[0]; };
  const Autocast guard(DType::bf16);
  const Tensor first = copy_of(weight);
  {
    const Autocast inner(DType::bf16);
    NoGradGuard no_grad;
    EXPECT_EQ(copy_of(weight).data_ptr(), first.data_ptr());
    EXPECT_FALSE(copy_of(weight).requires_grad());
  }
  EXPECT_EQ(copy_of(weight).data_ptr(), first.data_ptr());
  EXPECT_TRUE(copy_of(weight).requires_grad());
  EXPECT_NE(copy_of(weight.detach()).data_ptr(), first.data_ptr());  // not a weight
  {
    NoGradGuard no_grad;
    weight.fill_(2);
  }
  EXPECT_TRUE(test::near(copy_of(weight), full({5}, 2, {.device = test::device()})));
  weight.set_data(full({5}, 3, {.device = test::device()}));
  EXPECT_TRUE(test::near(copy_of(weight), full({5}, 3, {.device = test::device()})));
  {
    const Autocast f16(DType::f16);
    EXPECT_EQ(copy_of(weight).dtype(), DType::f16);
  }
}

TEST(Autocast, WeightsAreFreedWithTheOutermostScope) {
  const Tensor weight = weight_of({1 << 16});
  const std::int64_t before = memory_stats(test::device()).current;
  {
    const Autocast guard(DType::bf16);
    autocast::cast("matmul", weight);
    EXPECT_GE(memory_stats(test::device()).current, before + (1 << 17));
  }
  EXPECT_EQ(memory_stats(test::device()).current, before);
}

// Two micro-batches, each with a graph of its own that its backward frees.
TEST(Autocast, GradientsOfOneCopyAddUpInFp32) {
  const Tensor weight = weight_of({3});
  {
    const Autocast guard(DType::bf16);
    const std::vector<double> large{256, 256, 256}, small{1, 1, 1};  // 257 is no bf16 number
    for (const std::vector<double>& gradient : {large, small}) {
      autocast::cast("matmul", weight)[0].backward(from_vector(gradient, {3}, {DType::bf16, test::device()}));
    }
    const Tensor twice = autocast::cast("matmul", weight)[0], again = autocast::cast("matmul", weight)[0];
    autograd::backward(std::vector<Tensor>{twice, again},
                       std::vector<Tensor>{from_vector(large, {3}, {DType::bf16, test::device()}),
                                           from_vector(small, {3}, {DType::bf16, test::device()})});
  }
  EXPECT_EQ(weight.grad().dtype(), DType::f32);
  EXPECT_TRUE(test::near(weight.grad(), full({3}, 514, {.device = test::device()})));
}

TEST(Autocast, BackwardRunsOutsideAndRecomputationInsideTheScope) {
  Tensor x = weight_of({3});
  std::vector<autocast::State> forward, backward;
  const auto function = [&](std::span<const Tensor> in) {
    forward.push_back(autocast::state());
    return autograd::record("observed", in[0].clone(), {in[0]}, [&](const Tensor& grad_output, const auto&) {
      backward.push_back(autocast::state());
      return autograd::Gradients{grad_output};
    });
  };
  Tensor y;
  {
    const Autocast guard(DType::bf16);
    y = autograd::checkpoint(function, {x});
  }
  const Autocast another(DType::f16);
  y.backward(ones({3}, {.device = test::device()}));
  const autocast::State bf16{DType::bf16, DType::bf16};
  EXPECT_EQ(forward, (std::vector{bf16, bf16}));
  EXPECT_EQ(backward, std::vector{autocast::State{}});
}

}  // namespace
}  // namespace ergon
