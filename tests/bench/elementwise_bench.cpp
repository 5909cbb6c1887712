// Elementwise ops, reductions and softmax: bytes moved a second, against memcpy of the same number of bytes
// on the same threads in the same run.
//
//   build/cpu/bench/elementwise_bench

#include <cstdio>
#include <string>

#include "core/autograd.h"
#include "ops/activation.h"
#include "ops/arithmetic.h"
#include "ops/reduce.h"
#include "ops/softmax.h"
#include "tests/bench/bandwidth.h"

int main() {
  using namespace ergon;
  using bench::report;
  NoGradGuard no_grad;
  std::printf("%d threads; medians of 30\n", num_threads());
  for (const std::int64_t rows : {std::int64_t{64}, std::int64_t{8192}}) {
    const std::int64_t cols = 768, n = rows * cols;
    std::printf("\n(%ld, %ld)\n", rows, cols);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const std::string type(name_of(dtype));
      const std::int64_t size = size_of(dtype);
      const Tensor x = rand({rows, cols}, {dtype}), y = rand({rows, cols}, {dtype});
      const Tensor bias = rand({cols}, {dtype}), column = rand({rows, 1}, {dtype});
      const Tensor turned = rand({cols, rows}, {dtype}).transpose(0, 1);
      Tensor z = zeros({rows, cols}, {dtype});
      report("add " + type, 3 * n * size, [&] { ops::add(x, y); });
      report("add_ " + type, 3 * n * size, [&] { ops::add_(z, y); });
      report("add row " + type, 2 * n * size, [&] { ops::add(x, bias); });
      report("add column " + type, 2 * n * size, [&] { ops::add(x, column); });
      report("add transposed " + type, 3 * n * size, [&] { ops::add(x, turned); });
      report("mul scalar " + type, 2 * n * size, [&] { ops::mul(x, 1.5); });
      report("exp " + type, 2 * n * size, [&] { ops::exp(x); });
      report("gelu erf " + type, 2 * n * size, [&] { ops::gelu(x); });
      report("gelu tanh " + type, 2 * n * size, [&] { ops::gelu(x, ops::GeluForm::tanh); });
      report("sum all " + type, n * size, [&] { ops::sum(x); });
      report("sum rows " + type, n * size, [&] { ops::sum(x, {1}); });
      report("sum columns " + type, n * size, [&] { ops::sum(x, {0}); });
      report("argmax rows " + type, n * size, [&] { ops::argmax(x, 1); });
      report("softmax rows " + type, 2 * n * size, [&] { ops::softmax(x, 1); });
      report("softmax columns " + type, 2 * n * size, [&] { ops::softmax(x, 0); });
    }
  }
  return 0;
}
