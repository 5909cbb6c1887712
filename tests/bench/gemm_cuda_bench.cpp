// Matrix products on a GPU in TFLOP/s, and the ratio to cuBLASLt's in the same run: those of a GPT-2 124M
// training step, and large squares. Of the simulated GPU the times say nothing; it runs this with small
// shapes to see that it works.
//
//   build/cuda/bench/gemm_cuda_bench [--only qkv] [--rounds 20] [--shrink 1] [--plans] [--no-peer]

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/gemm.h"
#include "kernels/providers.h"
#include "tests/bench/gemm_table.h"

namespace {

using namespace ergon;

const Device kCuda = Device::cuda();
constexpr int kRepeats = 10;  // products between two events

struct Kind {
  const char* name;
  DType dtype;
  bool allow_tf32;
};
constexpr Kind kKinds[] = {{"bf16", DType::bf16, false},
                           {"f16", DType::f16, false},
                           {"tf32", DType::f32, true},
                           {"f32", DType::f32, false}};

std::vector<bench::Shape> shapes(std::int64_t shrink) {
  std::vector<bench::Shape> shapes;
  for (const bench::Shape& shape : bench::gpt_shapes()) {
    if (std::string(shape.name).find("124M") != std::string::npos) shapes.push_back(shape);
  }
  for (const std::int64_t n : {1024, 2048, 4096, 8192}) shapes.push_back({"square", 'N', 'T', n, n, n, 1});
  for (bench::Shape& s : shapes) {
    const auto smaller = [&](std::int64_t size) { return (size + shrink - 1) / shrink; };
    s.M = smaller(s.M), s.N = smaller(s.N), s.K = smaller(s.K), s.batch = smaller(s.batch);
  }
  return shapes;
}

double milliseconds(const std::function<void()>& f, int calls) {
  Event start(true), stop(true);
  const Stream stream = current_stream(kCuda);
  start.record(stream);
  for (int i = 0; i < calls; ++i) f();
  stop.record(stream);
  stop.synchronize();
  return static_cast<double>(stop.elapsed_ms(start)) / calls;
}

struct Product {
  Product(const bench::Shape& s, const Kind& kind)
      : a(ones({s.batch * s.M * s.K}, {kind.dtype, kCuda})),
        b(ones({s.batch * s.K * s.N}, {kind.dtype, kCuda})),
        c(empty({s.batch * s.M * s.N}, {kind.dtype, kCuda})) {
    const bool ta = s.trans_a == 'T', tb = s.trans_b == 'T';
    params = {.M = s.M, .N = s.N, .K = s.K, .batch_outer = s.batch, .allow_tf32 = kind.allow_tf32};
    params.a = {a.data_ptr(), kind.dtype, ta ? 1 : s.lda(), ta ? s.lda() : 1, s.M * s.K};
    params.b = {b.data_ptr(), kind.dtype, tb ? 1 : s.ldb(), tb ? s.ldb() : 1, s.K * s.N};
    params.c = {c.data_ptr(), kind.dtype, s.N, 1, s.M * s.N};
    if (const std::int64_t bytes = kernels::cuda::gemm_workspace(params); bytes > 0) {
      workspace = empty({bytes}, {DType::u8, kCuda});
      params.workspace = workspace.data_ptr();
    }
  }
  void operator()() const { kernels::cuda::gemm(params); }

  Tensor a, b, c, workspace;
  kernels::GemmParams params;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Matrix products on a GPU");
  std::string only;
  int rounds = 20;
  std::int64_t shrink = 1;
  bool plans = false, no_peer = false;
  app.add_option("--only", only, "shapes whose name contains this");
  app.add_option("--rounds", rounds)->check(CLI::PositiveNumber);
  app.add_option("--shrink", shrink, "divides every dimension")->check(CLI::PositiveNumber);
  app.add_flag("--plans", plans, "prints which kernel runs, and why");
  app.add_flag("--no-peer", no_peer, "Ergon's kernels alone");
  CLI11_PARSE(app, argc, argv);
  std::printf("%-20s %-2s %6s %6s %6s %3s", "product", "", "M", "N", "K", "x");
  for (const Kind& kind : kKinds) std::printf(" %8s %6s", kind.name, no_peer ? "" : "ratio");
  std::printf("  TFLOP/s, time of cuBLASLt / Ergon; medians of %d\n", rounds);
  for (const bench::Shape& s : shapes(shrink)) {
    if (std::string(s.name).find(only) == std::string::npos) continue;
    std::printf("%-20s %c%c %6ld %6ld %6ld %3ld", s.name, s.trans_a, s.trans_b, static_cast<long>(s.M),
                static_cast<long>(s.N), static_cast<long>(s.K), static_cast<long>(s.batch));
    std::string lines;
    for (const Kind& kind : kKinds) {
      const Product product(s, kind);
      product();
      // A row of ones times a column of ones, rounded once.
      const Tensor expected = full({1}, static_cast<double>(s.K), {.dtype = kind.dtype});
      if (product.c.slice(0, s.M * s.N - 1, s.M * s.N).to(Device::cpu()).item<double>()
          != expected.item<double>()) {
        std::printf("\n%s: wrong result\n", kind.name);
        return 1;
      }
      std::vector<double> times, ratios;
      for (int round = 0; round < rounds; ++round) {
        times.push_back(milliseconds(product, kRepeats));
        if (no_peer) continue;
        kernels::set_gemm_provider(kernels::GemmProvider::cublaslt);
        const Product peer(s, kind);
        if (round == 0) peer();  // loads the library
        ratios.push_back(milliseconds(peer, kRepeats) / times.back());
        kernels::set_gemm_provider(kernels::GemmProvider::ergon);
      }
      std::printf(" %8.1f %6s", s.flops() / bench::median(times) * 1e-9,
                  no_peer ? "" : fmt::format("{:.2f}", bench::median(ratios)).c_str());
      if (plans) lines += "    " + kernels::cuda::gemm_plan(product.params) + '\n';
    }
    std::printf("\n%s", lines.c_str());
    std::fflush(stdout);
  }
  return 0;
}
