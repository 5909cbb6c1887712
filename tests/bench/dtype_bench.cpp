// Operators in bf16 and f16 beside fp32, on the CPU: milliseconds, and how many times as fast as fp32.
//
//   build/cpu/bench/dtype_bench [OPERATOR...]
//
// Tensors of 8 Mi elements, larger than the caches; products of GPT-2 124M's sizes.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "core/autograd.h"
#include "ops/activation.h"
#include "ops/arithmetic.h"
#include "ops/attention.h"
#include "ops/batch_norm.h"
#include "ops/conv2d.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/pooling.h"
#include "ops/reduce.h"
#include "ops/rms_norm.h"
#include "ops/rotary_embedding.h"
#include "ops/softmax.h"
#include "ops/swiglu.h"

using namespace ergon;

namespace {

constexpr std::int64_t kRows = 8192, kCols = 1024;
constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

double milliseconds(const std::function<void()>& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// The fastest of some calls: what interrupts them only adds.
double fastest_of(const std::function<void()>& function) {
  double fastest = milliseconds(function);
  for (int i = 0; i < 14; ++i) fastest = std::min(fastest, milliseconds(function));
  return fastest;
}

std::span<char*> wanted;  // operators; all if there are none

// Of a first input of `shape`.
void report(const char* name, const Shape& shape, const std::function<Tensor(const Tensor&)>& op) {
  if (!wanted.empty() && std::ranges::find(wanted, std::string_view(name)) == wanted.end()) return;
  double times[2][3];
  for (std::size_t i = 0; i < 3; ++i) {
    Tensor input = randn(shape).to(kDTypes[i]);
    input.set_requires_grad(true);
    const Tensor output = op(input), gradient = rand(output.shape(), output.options());
    times[0][i] = fastest_of([&] {
      NoGradGuard no_grad;
      op(input);
    });
    times[1][i] = fastest_of(
        [&] { autograd::grad(std::span(&output, 1), std::span(&input, 1), std::span(&gradient, 1), true); });
  }
  for (int pass = 0; pass < 2; ++pass) {
    const auto& [f32, bf16, f16] = times[pass];
    std::printf("%-16s %-8s  f32 %7.2f ms  bf16 %7.2f ms (%.2f)  f16 %7.2f ms (%.2f)\n", name,
                pass == 0 ? "forward" : "backward", f32, bf16, f32 / bf16, f16, f32 / f16);
  }
}

}  // namespace

int main(int argc, char** argv) {
  wanted = std::span(argv + 1, argv + argc);
  const Shape matrix{kRows, kCols}, images{64, 32, 64, 64};
  const Tensor classes = randint(0, kCols, {kRows}), tokens = randint(0, kRows, {kRows});
  const Tensor weight = rand({kCols}), channels = rand({32});
  const auto like = [](const Tensor& x, const Shape& shape) { return (randn(shape) * 0.05).to(x.dtype()); };
  report("add", matrix, [](const Tensor& x) { return x + x; });
  report("gelu", matrix, [](const Tensor& x) { return ops::gelu(x); });
  report("sum", matrix, [](const Tensor& x) { return ops::sum(x, {1}); });
  report("sum of columns", matrix, [](const Tensor& x) { return ops::sum(x, {0}); });
  report("softmax", matrix, [](const Tensor& x) { return ops::softmax(x, 1); });
  report("layer_norm", matrix,
         [&](const Tensor& x) { return ops::layer_norm(x, weight.to(x.dtype()), weight.to(x.dtype())); });
  report("rms_norm", matrix, [&](const Tensor& x) { return ops::rms_norm(x, weight.to(x.dtype())); });
  report("cross_entropy", matrix, [&](const Tensor& x) { return ops::cross_entropy(x, classes); });
  report("swiglu", matrix, [](const Tensor& x) { return ops::swiglu(x); });
  report("dropout", matrix, [](const Tensor& x) { return ops::dropout(x, 0.1); });
  report("embedding", matrix, [&](const Tensor& x) { return ops::embedding(x, tokens); });
  report("rotary", {8, 1024, 16, 64}, [](const Tensor& x) { return ops::rotary_embedding(x); });
  report("max_pool2d", images, [](const Tensor& x) { return ops::max_pool2d(x, {.kernel = {2, 2}}); });
  report("avg_pool2d", images, [](const Tensor& x) { return ops::avg_pool2d(x, {.kernel = {2, 2}}); });
  report("batch_norm2d", images,
         [&](const Tensor& x) { return ops::batch_norm2d(x, channels, channels, {}, {}, true); });
  const Tensor filter = randn({32, 32, 3, 3});
  report("conv2d", {8, 32, 32, 32}, [&](const Tensor& x) {
    return ops::conv2d(x, filter.to(x.dtype()), {}, {.padding = {1, 1}});
  });
  Tensor projection = like(weight, {768, 3072});
  report("linear", {1024, 768}, [&](const Tensor& x) {
    return ops::linear(x, projection.to(x.dtype()), {}, {.layout = ops::WeightLayout::in_out});
  });
  report("attention", {4, 256, 12, 64},
         [](const Tensor& x) { return ops::scaled_dot_product_attention(x, x, x, {.causal = true}); });
}
