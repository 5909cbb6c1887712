// Normalisation, cross-entropy, embedding, dropout, rotary embedding and SwiGLU, forward and backward: bytes
// moved a second, against memcpy of the same number of bytes on the same threads in the same run; then the
// fused projection with cross-entropy at GPT-2's size against its composed form.
//
//   build/cpu/bench/nn_ops_bench

#include <cstdio>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/autograd.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rotary_embedding.h"
#include "ops/swiglu.h"
#include "tests/bench/bandwidth.h"

namespace {

using namespace ergon;

// Reports `function` on inputs of which the first requires a gradient, without and with recording, then the
// backward alone.
void report_op(const std::string& name, std::int64_t forward_bytes, std::int64_t backward_bytes,
               const std::function<std::vector<Tensor>()>& function, const std::vector<Tensor>& inputs) {
  {
    NoGradGuard no_grad;
    bench::report(name, forward_bytes, [&] { function(); });
  }
  const std::vector<Tensor> outputs = function();
  std::vector<Tensor> grads;
  for (const Tensor& output : outputs) grads.push_back(rand(output.shape(), output.options()));
  bench::report(name + " backward", backward_bytes, [&] { autograd::grad(outputs, inputs, grads, true); });
}

void row_ops(std::int64_t rows, std::int64_t cols, DType dtype) {
  const std::string type = fmt::format(" {}", name_of(dtype));
  const std::int64_t n = rows * cols * size_of(dtype);
  const auto random = [&](const Shape& shape) { return rand(shape, {dtype}).set_requires_grad(true); };
  const Tensor x = random({rows, cols}), residual = random({rows, cols});
  const Tensor weight = random({cols}), bias = random({cols});
  report_op("layer_norm" + type, 2 * n, 3 * n, [&] { return std::vector{ops::layer_norm(x, weight, bias)}; },
            {x, weight, bias});
  report_op("add_layer_norm" + type, 4 * n, 4 * n,
            [&] {
              const auto [normed, sum] = ops::add_layer_norm(x, residual, weight, bias);
              return std::vector{normed, sum};
            },
            {x, residual, weight, bias});
  report_op("rms_norm" + type, 2 * n, 3 * n, [&] { return std::vector{ops::rms_norm(x, weight)}; },
            {x, weight});
  report_op("dropout" + type, 2 * n, 2 * n, [&] { return std::vector{ops::dropout(x, 0.1)}; }, {x});
  report_op("swiglu" + type, 3 * n, 5 * n, [&] { return std::vector{ops::swiglu(x, residual)}; },
            {x, residual});
  const Tensor heads = random({rows / 64, 64, cols / 64, 64});
  report_op("rotary_embedding" + type, 2 * n, 2 * n,
            [&] { return std::vector{ops::rotary_embedding(heads)}; }, {heads});
}

void table_ops(std::int64_t rows, std::int64_t vocab, std::int64_t cols, DType dtype) {
  const std::string type = fmt::format(" {}", name_of(dtype));
  const Tensor indices = randint(0, vocab, {rows});
  const Tensor table = rand({vocab, cols}, {dtype}).set_requires_grad(true);
  report_op("embedding" + type, 2 * rows * table.nbytes() / vocab,
            table.nbytes() + rows * table.nbytes() / vocab,
            [&] { return std::vector{ops::embedding(table, indices)}; }, {table});
  const Tensor logits = rand({rows, vocab}, {dtype}).set_requires_grad(true);
  report_op("cross_entropy" + type, logits.nbytes(), 2 * logits.nbytes(),
            [&] { return std::vector{ops::cross_entropy(logits, indices)}; }, {logits});
}

void projection(std::int64_t rows, std::int64_t vocab, std::int64_t cols) {
  const Tensor hidden = rand({rows, cols}).set_requires_grad(true), targets = randint(0, vocab, {rows});
  const Tensor weight = rand({vocab, cols}).set_requires_grad(true);
  const auto step = [&](const std::function<Tensor()>& loss) {
    autograd::grad(std::vector{loss()}, std::vector{hidden, weight});
  };
  const auto fused = [&] { step([&] { return ops::linear_cross_entropy(hidden, weight, targets); }); };
  const auto composed = [&] {
    step([&] { return ops::cross_entropy(ops::linear(hidden, weight), targets); });
  };
  const auto peak = [&](const std::function<void()>& f) {
    empty_cache(Device::cpu());
    reset_peak_memory(Device::cpu());
    f();
    return static_cast<double>(memory_stats(Device::cpu()).peak) * 1e-6;
  };
  const double fused_peak = peak(fused), composed_peak = peak(composed);
  std::vector<double> times, ratios;
  for (int round = 0; round < 5; ++round) {
    const double a = bench::seconds(fused), b = bench::seconds(composed);
    times.push_back(a), ratios.push_back(b / a);
  }
  const double time = bench::median(times);
  std::printf(
      "\nlinear_cross_entropy (%ld, %ld) x (%ld, %ld), forward and backward: %.1f ms, %.0f GFLOP/s, peak "
      "%.0f MB\n",
      rows, cols, vocab, cols, time * 1e3, 6e-9 * static_cast<double>(rows * vocab * cols) / time,
      fused_peak);
  std::printf("composed form: %.2f x the time, peak %.0f MB\n", bench::median(ratios), composed_peak);
}

}  // namespace

int main() {
  std::printf("%d threads; medians of 30\n", num_threads());
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{768, 128}, {1024, 768}, {16384, 768}}) {
    std::printf("\n(%ld, %ld)\n", rows, cols);
    for (DType dtype : {DType::f32, DType::bf16}) row_ops(rows, cols, dtype);
  }
  for (const auto& [rows, vocab, cols] : {std::array<std::int64_t, 3>{768, 65, 128}, {1024, 50257, 768}}) {
    std::printf("\n%ld rows, vocabulary %ld, %ld features\n", rows, vocab, cols);
    for (DType dtype : {DType::f32, DType::bf16}) table_ops(rows, vocab, cols, dtype);
  }
  projection(768, 65, 128);
  projection(1024, 50257, 768);
  return 0;
}
