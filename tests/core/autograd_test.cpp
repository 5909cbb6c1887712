#include "core/autograd.h"

#include <gtest/gtest.h>

#include "core/gradcheck.h"

namespace ergon {
namespace {

// y = x * x, as an op outside the library would be written.
Tensor square(const Tensor& x) {
  Tensor y = empty(x.shape(), x.options());
  const Tensor dense = x.contiguous();
  for (std::int64_t i = 0; i < x.numel(); ++i)
    y.data<double>()[i] = dense.data<double>()[i] * dense.data<double>()[i];
  return autograd::record("square", y, {x}, [x = autograd::save(x)](const Tensor& grad_output, const auto&) {
    const Tensor input = x.get().contiguous();
    Tensor grad = grad_output.clone();
    for (std::int64_t i = 0; i < grad.numel(); ++i) grad.data<double>()[i] *= 2 * input.data<double>()[i];
    return autograd::Gradients{grad};
  });
}

Tensor leaf(std::vector<double> values) {
  const Shape shape{static_cast<std::int64_t>(values.size())};
  return from_vector(values, shape, {.dtype = DType::f64, .requires_grad = true});
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Autograd, LeafGradientsAccumulateOverBackwards) {
  const Tensor x = leaf({1, -2, 3});
  square(x).backward(ones({3}, {DType::f64}));
  EXPECT_EQ(x.grad().to_vector<double>(), (std::vector<double>{2, -4, 6}));
  square(x).backward(ones({3}, {DType::f64}));
  EXPECT_EQ(x.grad().to_vector<double>(), (std::vector<double>{4, -8, 12}));
}

TEST(Autograd, SharedInputSumsBothPaths) {
  const Tensor x = leaf({3});
  const Tensor y = square(x);
  cat({y, square(y)}, 0).backward(ones({2}, {DType::f64}));
  EXPECT_DOUBLE_EQ(x.grad().item<double>(), 2 * 3 + 4 * 27);
}

TEST(Autograd, GradientOfOneTensorIsNotAliasedToAnother) {
  const Tensor a = leaf({1, 2}), b = leaf({3, 4});
  const Tensor both = cat({a, b}, 0);
  both.backward(from_vector<double>({1, 2, 3, 4}, {4}, {DType::f64}));
  Tensor grad_a = a.grad();
  grad_a.fill_(100);
  EXPECT_EQ(b.grad().to_vector<double>(), (std::vector<double>{3, 4}));
}

TEST(Autograd, NoGradGuardRecordsNothing) {
  const Tensor x = leaf({1});
  NoGradGuard no_grad;
  EXPECT_FALSE(square(x).requires_grad());
}

TEST(Autograd, SecondBackwardNeedsRetainGraph) {
  const Tensor x = leaf({2});
  const Tensor y = square(x);
  y.backward({}, /*retain_graph=*/true);
  y.backward();
  EXPECT_DOUBLE_EQ(x.grad().item<double>(), 8);
  EXPECT_EQ(
      error_of([&] { y.backward(); }),
      "[square] backward a second time through a graph that has been freed: pass retain_graph to the first");
}

TEST(Autograd, InPlaceChangeOfASavedTensorIsCaught) {
  const Tensor x = leaf({2});
  Tensor y = square(x);
  const Tensor z = square(y);
  {
    NoGradGuard no_grad;
    y.fill_(7);
  }
  EXPECT_NE(error_of([&] { z.backward(); }).find("was changed in place: its version is 1, expected 0"),
            std::string::npos);
}

TEST(Autograd, InPlaceOnALeafThatRequiresGradThrows) {
  Tensor x = leaf({2});
  EXPECT_NE(error_of([&] { x.fill_(1); }).find("[fill_] a leaf of shape (1,) that requires a gradient"),
            std::string::npos);
}

TEST(Autograd, StaleViewIsCaught) {
  const Tensor x = leaf({1, 2});
  Tensor y = square(x);
  const Tensor view = y.slice(0, 0, 1);
  y.copy_(leaf({5, 6}));
  EXPECT_NE(error_of([&] { square(view); }).find("make the view again"), std::string::npos);
}

TEST(Autograd, CopyIntoSendsGradientToTheSource) {
  const Tensor x = leaf({1, 2, 3}), source = leaf({4});
  Tensor y = square(x);
  y.copy_(source);
  square(y).backward(ones({3}, {DType::f64}));
  EXPECT_EQ(x.grad().to_vector<double>(), (std::vector<double>{0, 0, 0}));
  EXPECT_DOUBLE_EQ(source.grad().item<double>(), 24);
}

TEST(Autograd, HooksSeeAndReplaceGradients) {
  const Tensor x = leaf({3});
  const Tensor y = square(x);
  y.register_hook([](const Tensor& grad) { return full(grad.shape(), 10, grad.options()); });
  int ready = 0;
  x.register_post_accumulate_grad_hook([&](const Tensor& parameter) {
    ++ready;
    EXPECT_DOUBLE_EQ(parameter.grad().item<double>(), 60);
  });
  y.backward();
  EXPECT_EQ(ready, 1);
}

TEST(Autograd, ReadyHookRunsBeforeEarlierLayersAreDifferentiated) {
  std::vector<int> order;
  const Tensor first = leaf({1}), second = leaf({2});
  first.register_post_accumulate_grad_hook([&](const Tensor&) { order.push_back(1); });
  second.register_post_accumulate_grad_hook([&](const Tensor&) { order.push_back(2); });
  const Tensor hidden = square(first);
  hidden.register_hook([&](const Tensor&) {
    order.push_back(0);
    return Tensor();
  });
  cat({square(hidden), second}, 0).backward(ones({2}, {DType::f64}));
  EXPECT_EQ(order, (std::vector<int>{2, 0, 1}));
}

TEST(Autograd, GradReturnsWithoutAccumulating) {
  const Tensor x = leaf({3}), unused = leaf({1});
  const Tensor y = square(x), z = square(y);
  const std::vector<Tensor> inputs{x, y, unused};
  const std::vector<Tensor> grads = autograd::grad(std::span(&z, 1), inputs);
  EXPECT_DOUBLE_EQ(grads[0].item<double>(), 108);
  EXPECT_DOUBLE_EQ(grads[1].item<double>(), 18);
  EXPECT_FALSE(grads[2].defined());
  EXPECT_FALSE(x.grad().defined());
}

TEST(Autograd, CheckpointGivesTheSameGradientsAndNumbers) {
  const Tensor weight = leaf({2, 3});
  const auto layer = [&](std::span<const Tensor> inputs) {
    Tensor noise = rand({2}, {DType::f64});
    return square(cat({inputs[0], weight, noise}, 0));
  };
  const Tensor x = leaf({5});
  const std::vector<double> grad_values{1, 2, 3, 4, 5};
  const Tensor grad_output = from_vector(grad_values, {5}, {DType::f64});
  manual_seed(7);
  const Tensor direct = layer(std::vector<Tensor>{x});
  direct.backward(grad_output);
  const std::vector<double> expected_x = x.grad().to_vector<double>(),
                            expected_w = weight.grad().to_vector<double>();
  Tensor(x).zero_grad();
  Tensor(weight).zero_grad();
  manual_seed(7);
  const Tensor checkpointed = autograd::checkpoint(layer, {x});
  EXPECT_TRUE(equal_bits(direct, checkpointed));
  const PhiloxState before = default_generator().state();
  checkpointed.backward(grad_output);
  EXPECT_EQ(default_generator().state().offset, before.offset);
  EXPECT_EQ(x.grad().to_vector<double>(), expected_x);
  EXPECT_EQ(weight.grad().to_vector<double>(), expected_w);
}

TEST(Autograd, WrongGradientShapeNamesTheOp) {
  const Tensor x = leaf({1, 2});
  const Tensor y = autograd::record("broken", zeros({2}, {DType::f64}), {x}, [](const Tensor&, const auto&) {
    return autograd::Gradients{zeros({3}, {DType::f64})};
  });
  EXPECT_EQ(error_of([&] { y.backward(ones({2}, {DType::f64})); }),
            "[broken] backward returned a gradient (3,) f64 for input 0, which is (2,) f64");
}

TEST(Autograd, DeepGraphsAreFreedWithoutRecursion) {
  Tensor x = leaf({1});
  Tensor y = x;
  for (int i = 0; i < 200000; ++i) y = y.unsqueeze(0).squeeze(0);
  y.backward();
  EXPECT_DOUBLE_EQ(x.grad().item<double>(), 1);
}

TEST(Gradcheck, AcceptsRightAndRejectsWrongGradients) {
  autograd::gradcheck([](std::span<const Tensor> in) { return square(in[0]); }, {leaf({1, 2, 3})});
  const auto wrong = [](std::span<const Tensor> in) {
    return autograd::record(
        "wrong", square(in[0].detach()), {in[0]},
        [](const Tensor& grad_output, const auto&) { return autograd::Gradients{grad_output}; });
  };
  EXPECT_NE(error_of([&] {
              autograd::gradcheck(wrong, {leaf({1, 2})});
            }).find("[gradcheck] input 0 of shape (2,), element 0"),
            std::string::npos);
}

TEST(Gradcheck, ViewsCatAndCopies) {
  const auto views = [](std::span<const Tensor> in) {
    const Tensor x = in[0].view({2, 3, 2}).permute({2, 0, 1}).slice(2, 0, 3, 2);  // (2, 2, 2)
    const Tensor e = x.select(0, 1).unsqueeze(0).expand({3, 2, 2}).reshape({-1, 2}).transpose(0, 1);
    return square(cat({e, x.flatten(1).clone().slice(1, 0, 6)}, 1));
  };
  autograd::gradcheck(views, {leaf({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})});
}

}  // namespace
}  // namespace ergon
