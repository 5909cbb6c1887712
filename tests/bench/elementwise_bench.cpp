// Elementwise ops, reductions and softmax: bytes moved a second, against memcpy of the same number of bytes
// on the same threads in the same run.
//
//   build/cpu/bench/elementwise_bench

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/autograd.h"
#include "core/parallel.h"
#include "ops/activation.h"
#include "ops/arithmetic.h"
#include "ops/reduce.h"
#include "ops/softmax.h"

namespace {

using namespace ergon;

double seconds(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Reads and writes bytes / 2 each.
class Memcpy {
 public:
  explicit Memcpy(std::int64_t bytes)
      : half_(bytes / 2), from_(zeros({half_}, {DType::u8})), to_(zeros({half_}, {DType::u8})) {}
  void operator()() const {
    auto* to = static_cast<char*>(to_.data_ptr());
    const auto* from = static_cast<const char*>(from_.data_ptr());
    parallel_for(0, half_, 65536, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin));
    });
  }

 private:
  std::int64_t half_;
  Tensor from_, to_;
};

void report(const std::string& name, std::int64_t bytes, const std::function<void()>& f) {
  const Memcpy copy(bytes);
  const auto repeat = std::max<int>(1, static_cast<int>(4'000'000 / bytes));
  std::vector<double> times, ratios;
  for (int round = 0; round < 32; ++round) {
    const double mine = seconds([&] {
      for (int i = 0; i < repeat; ++i) f();
    });
    const double peer = seconds([&] {
      for (int i = 0; i < repeat; ++i) copy();
    });
    if (round < 2) continue;  // warm-up
    times.push_back(mine / repeat);
    ratios.push_back(peer / mine);
  }
  const double time = median(times);
  std::printf("%-34s %9.1f us %7.1f GB/s %6.2f x memcpy\n", name.c_str(), time * 1e6,
              static_cast<double>(bytes) / time * 1e-9, median(ratios));
}

}  // namespace

int main() {
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
