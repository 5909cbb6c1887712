// Elementwise ops and reductions on a GPU: bytes moved a second, against a copy of the same number of bytes
// on the device in the same run. Of the simulated GPU the times say nothing; it runs this with a few rows to
// see that it works.
//
//   build/cuda/bench/elementwise_cuda_bench [--rows 8192] [--cols 4096] [--rounds 30]

#include <cstdio>
#include <string>

#include <CLI/CLI.hpp>

#include "core/autograd.h"
#include "core/stream.h"
#include "ops/activation.h"
#include "ops/arithmetic.h"
#include "ops/compare.h"
#include "ops/reduce.h"
#include "tests/bench/bandwidth.h"

namespace {

using namespace ergon;

const Device kCuda = Device::cuda();
constexpr int kRepeats = 10;  // calls between two events

double milliseconds(const std::function<void()>& f) {
  Event start(true), stop(true);
  const Stream stream = current_stream(kCuda);
  start.record(stream);
  for (int i = 0; i < kRepeats; ++i) f();
  stop.record(stream);
  stop.synchronize();
  return static_cast<double>(stop.elapsed_ms(start)) / kRepeats;
}

// Prints time, bytes a second and the ratio to the copy: medians of rounds that run one after the other.
void report(const std::string& name, std::int64_t bytes, int rounds, const std::function<void()>& f) {
  const Tensor from = zeros({bytes / 2}, {DType::u8, kCuda}), to = zeros({bytes / 2}, {DType::u8, kCuda});
  std::vector<double> times, ratios;
  for (int round = 0; round < rounds + 2; ++round) {
    const double mine = milliseconds(f), copy = milliseconds([&] { Tensor(to).copy_(from); });
    if (round < 2) continue;  // warm-up
    times.push_back(mine);
    ratios.push_back(copy / mine);
  }
  const double time = bench::median(times);
  std::printf("%-22s %9.1f us %8.1f GB/s %6.2f x copy\n", name.c_str(), time * 1e3,
              static_cast<double>(bytes) / time * 1e-6, bench::median(ratios));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Elementwise ops and reductions on a GPU against a copy");
  std::int64_t rows = 8192, cols = 4096;
  int rounds = 30;
  app.add_option("--rows", rows)->check(CLI::PositiveNumber);
  app.add_option("--cols", cols)->check(CLI::PositiveNumber);
  app.add_option("--rounds", rounds)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  NoGradGuard no_grad;
  const std::int64_t n = rows * cols;
  std::printf("(%ld, %ld); medians of %d\n", rows, cols, rounds);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::string type(name_of(dtype));
    const std::int64_t size = size_of(dtype);
    const auto random = [&](const Shape& shape) { return rand(shape, {dtype, kCuda}); };
    const Tensor x = random({rows, cols}), y = random({rows, cols}),
                 wide = rand({rows, cols}, {.device = kCuda});
    const Tensor bias = random({cols}), column = random({rows, 1}), condition = ops::gt(x, y);
    Tensor z = random({rows, cols});
    const auto run = [&](const char* name, std::int64_t bytes, const std::function<void()>& f) {
      report(std::string(name) + " " + type, bytes, rounds, f);
    };
    run("add", 3 * n * size, [&] { ops::add(x, y); });
    run("add_", 3 * n * size, [&] { ops::add_(z, y); });
    run("add with f32", n * (size + 8), [&] { ops::add(x, wide); });
    run("add row", 2 * n * size, [&] { ops::add(x, bias); });
    run("add column", 2 * n * size, [&] { ops::add(x, column); });
    run("mul scalar", 2 * n * size, [&] { ops::mul(x, 1.5); });
    run("exp", 2 * n * size, [&] { ops::exp(x); });
    run("gelu erf", 2 * n * size, [&] { ops::gelu(x); });
    run("gelu tanh", 2 * n * size, [&] { ops::gelu(x, ops::GeluForm::tanh); });
    run("gt", n * (2 * size + 1), [&] { ops::gt(x, y); });
    run("where", n * (3 * size + 1), [&] { ops::where(condition, x, y); });
    run("sum all", n * size, [&] { ops::sum(x); });
    run("sum rows", n * size, [&] { ops::sum(x, {1}); });
    run("sum columns", n * size, [&] { ops::sum(x, {0}); });
    run("argmax rows", n * size, [&] { ops::argmax(x, 1); });
  }
  return 0;
}
