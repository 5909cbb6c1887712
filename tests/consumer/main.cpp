// A project of somebody else's, built against an installed Ergon: the model of the README.
#include <iostream>

#include <ergon/ergon.h>

using namespace ergon;

struct Net : nn::Module {
  Net() {
    register_module("hidden", hidden);
    register_module("output", output);
  }
  Tensor forward(const Tensor& x) { return output(hidden.forward(x, ops::Activation::relu)); }
  nn::Linear hidden{2, 32}, output{32, 2};
};

int main() {
  manual_seed(0);
  const Tensor x = randn({512, 2});                                                   // points in the plane:
  const Tensor inside = ops::lt(ops::sum(x * x, {1}), full({}, 1.5)).to(DType::i64);  // within a circle?
  Net net;
  optim::AdamW optimizer(net.named_parameters(), {.lr = 1e-2});
  for (int step = 0; step < 300; ++step) {
    const Tensor loss = ops::cross_entropy(net.forward(x), inside);
    loss.backward();
    optimizer.step();
    optimizer.zero_grad();
    if (step % 100 == 99) std::cout << "step " << step + 1 << ": loss " << loss.item<float>() << '\n';
  }
  return ops::cross_entropy(net.forward(x), inside).item<float>() < 0.2 ? 0 : 1;
}
