#include <gtest/gtest.h>

#include "core/autograd.h"
#include "models/nn/init.h"
#include "models/nn/layers.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

struct Mlp : nn::Module {
  explicit Mlp(std::int64_t width) : up(width, 2 * width), down(2 * width, width, {.bias = false}) {
    running = zeros({width});
    register_module("up", up);
    register_module("down", down);
    register_buffer("running", running);
  }
  Tensor forward(const Tensor& x) { return down(up.forward(x, ops::Activation::relu)); }
  nn::Linear up, down;
  Tensor running;
};

struct Tied : nn::Module {
  Tied() : embedding(5, 3), head(3, 5, {.bias = false}) {
    register_module("embedding", embedding);
    register_module("head", head);
    head.weight = embedding.weight;
  }
  nn::Embedding embedding;
  nn::Linear head;
};

std::vector<std::string> names(const NamedTensors& tensors) {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : tensors) result.push_back(name);
  return result;
}

TEST(Module, NamesFollowRegistration) {
  Mlp mlp(4);
  EXPECT_EQ(names(mlp.named_parameters()), (std::vector<std::string>{"up.weight", "up.bias", "down.weight"}));
  EXPECT_EQ(names(mlp.named_buffers()), (std::vector<std::string>{"running"}));
  EXPECT_EQ(names(mlp.state_dict()),
            (std::vector<std::string>{"running", "up.weight", "up.bias", "down.weight"}));
  EXPECT_EQ(mlp.num_parameters(), 4 * 8 + 8 + 8 * 4);
  EXPECT_EQ(mlp.named_modules().size(), 3u);
}

TEST(Module, StateDictRoundTrip) {
  manual_seed(1);
  Mlp a(4);
  manual_seed(2);
  Mlp b(4);
  EXPECT_FALSE(equal_bits(a.up.weight, b.up.weight));
  b.load_state_dict(a.state_dict());
  const Tensor x = test::uniform({3, 4});
  EXPECT_TRUE(equal_bits(a.forward(x), b.forward(x)));
}

TEST(Module, LoadErrorsNameTheTensorAndChangeNothing) {
  Mlp mlp(4);
  const Tensor before = mlp.up.weight.clone();
  NamedTensors state = Mlp(4).state_dict();
  NamedTensors missing(state.begin(), state.end() - 1);
  EXPECT_EQ(test::error_of([&] { mlp.load_state_dict(missing); }),
            "[load_state_dict] down.weight of shape (4, 8) is missing");
  NamedTensors unknown = state;
  unknown.emplace_back("extra.weight", zeros({2}));
  EXPECT_EQ(test::error_of([&] { mlp.load_state_dict(unknown); }),
            "[load_state_dict] extra.weight of shape (2,) is not in the model (1 such names)");
  NamedTensors wrong = state;
  wrong.back().second = zeros({4, 9});
  EXPECT_EQ(test::error_of([&] { mlp.load_state_dict(wrong); }),
            "[load_state_dict] down.weight: expected shape (4, 8), got (4, 9)");
  EXPECT_TRUE(equal_bits(before, mlp.up.weight));
  mlp.load_state_dict(missing, /*strict=*/false);
}

TEST(Module, TiedWeightsAreOneParameter) {
  Tied tied;
  EXPECT_EQ(names(tied.named_parameters()), (std::vector<std::string>{"embedding.weight"}));
  // Under either name, or both.
  tied.load_state_dict({{"head.weight", ones({5, 3})}});
  EXPECT_TRUE(test::near(tied.embedding.weight, ones({5, 3})));
  tied.load_state_dict({{"embedding.weight", zeros({5, 3})}, {"head.weight", zeros({5, 3})}});
  tied.to(DType::bf16);
  EXPECT_TRUE(tied.embedding.weight.is_same(tied.head.weight));
}

TEST(Module, TrainEvalToApplyAndZeroGrad) {
  Mlp mlp(4);
  mlp.eval();
  EXPECT_FALSE(mlp.up.is_training());
  mlp.train();
  EXPECT_TRUE(mlp.down.is_training());
  int count = 0;
  mlp.apply([&](nn::Module&) { ++count; });
  EXPECT_EQ(count, 3);
  mlp.forward(ones({1, 4})).backward(ones({1, 4}));
  EXPECT_TRUE(mlp.up.weight.grad().defined());
  mlp.to(DType::f64);
  EXPECT_EQ(mlp.forward(ones({1, 4}, {DType::f64})).dtype(), DType::f64);
  EXPECT_EQ(mlp.running.dtype(), DType::f64);
  mlp.forward(ones({1, 4}, {DType::f64})).backward(ones({1, 4}, {DType::f64}));
  EXPECT_EQ(mlp.up.weight.grad().dtype(), DType::f64);
  mlp.zero_grad();
  EXPECT_FALSE(mlp.up.weight.grad().defined());
}

TEST(Module, SequentialRunsInOrder) {
  nn::Sequential net;
  net.add<nn::Flatten>().add<nn::Linear>(6, 4).add<nn::ReLU>().add<nn::Linear>(4, 2);
  EXPECT_EQ(net(ones({3, 2, 3})).shape(), (Shape{3, 2}));
  EXPECT_EQ(names(net.named_parameters()),
            (std::vector<std::string>{"1.weight", "1.bias", "3.weight", "3.bias"}));
}

TEST(Layers, DropoutFollowsTheMode) {
  nn::Dropout dropout(0.5);
  const Tensor x = ones({1000});
  dropout.eval();
  EXPECT_TRUE(equal_bits(dropout(x), x));
  dropout.train();
  manual_seed(3);
  const std::vector<double> y = dropout(x).to_vector<double>();
  const auto kept = std::count(y.begin(), y.end(), 2.0);
  EXPECT_EQ(std::count(y.begin(), y.end(), 0.0) + kept, 1000);
  EXPECT_NEAR(kept, 500, 5 * std::sqrt(250));
}

TEST(Init, DistributionsHaveTheirMoments) {
  Generator generator(5);
  const auto moments = [](const Tensor& t) {
    double mean = 0, square = 0;
    for (double v : t.to_vector<double>()) {
      mean += v / static_cast<double>(t.numel());
      square += v * v / static_cast<double>(t.numel());
    }
    return std::pair(mean, std::sqrt(square - mean * mean));
  };
  Tensor t = empty({100000});
  nn::init::normal_(t, 3, 0.5, generator);
  EXPECT_NEAR(moments(t).first, 3, 5 * 0.5 / std::sqrt(1e5));
  EXPECT_NEAR(moments(t).second, 0.5, 5 * 0.5 / std::sqrt(2e5));
  nn::init::uniform_(t, -1, 2, generator);
  EXPECT_NEAR(moments(t).first, 0.5, 5 * 0.87 / std::sqrt(1e5));
  nn::init::kaiming_normal_(t, 50, generator);
  EXPECT_NEAR(moments(t).second, 0.2, 5 * 0.2 / std::sqrt(2e5));
}

}  // namespace
}  // namespace ergon
