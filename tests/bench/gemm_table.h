#pragma once

// The products of a GPT-2 124M training step (batch 4 x 256) and of a small GPT's (12 x 64, 4 layers of 128),
// run by several contenders in turn. Times vary with what else the machine does, so each repetition runs
// every contender once and the table gives the median over repetitions of the ratio to Ergon.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/gemm.h"

namespace ergon::bench {

// C (M, N) = A B for each of `batch` contiguous matrices. NN: A (M, K), B (K, N) as stored; NT: B is stored
// (N, K); TN: A is stored (K, M).
struct Shape {
  const char* name;
  char trans_a, trans_b;
  std::int64_t M, N, K, batch;
  std::int64_t lda() const { return trans_a == 'T' ? M : K; }
  std::int64_t ldb() const { return trans_b == 'T' ? K : N; }
  double flops() const {
    return 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K)
           * static_cast<double>(batch);
  }
};

inline std::vector<Shape> gpt_shapes() {
  std::vector<Shape> shapes;
  // One linear layer: forward x W^T, input gradient dy W, weight gradient dy^T x.
  const auto linear = [&](const char* forward, const char* dgrad, const char* wgrad, std::int64_t tokens,
                          std::int64_t in, std::int64_t out) {
    shapes.push_back({forward, 'N', 'T', tokens, out, in, 1});
    shapes.push_back({dgrad, 'N', 'N', tokens, in, out, 1});
    shapes.push_back({wgrad, 'T', 'N', out, in, tokens, 1});
  };
  linear("124M qkv", "124M qkv dgrad", "124M qkv wgrad", 1024, 768, 2304);
  linear("124M proj", "124M proj dgrad", "124M proj wgrad", 1024, 768, 768);
  linear("124M mlp up", "124M up dgrad", "124M up wgrad", 1024, 768, 3072);
  linear("124M mlp down", "124M down dgrad", "124M down wgrad", 1024, 3072, 768);
  shapes.push_back({"124M qkv (in, out)", 'N', 'N', 1024, 2304, 768, 1});
  shapes.push_back({"124M attn q k^T", 'N', 'T', 256, 256, 64, 48});
  shapes.push_back({"124M attn p v", 'N', 'N', 256, 64, 256, 48});
  shapes.push_back({"124M attn p^T do", 'T', 'N', 256, 64, 256, 48});
  linear("small qkv", "small qkv dgrad", "small qkv wgrad", 768, 128, 384);
  linear("small proj", "small proj dgrad", "small proj wgrad", 768, 128, 128);
  linear("small mlp up", "small up dgrad", "small up wgrad", 768, 128, 512);
  linear("small mlp down", "small down dgrad", "small down wgrad", 768, 512, 128);
  linear("small head", "small head dgrad", "small head wgrad", 768, 128, 256);
  shapes.push_back({"small attn q k^T", 'N', 'T', 64, 64, 32, 48});
  shapes.push_back({"small attn p v", 'N', 'N', 64, 32, 64, 48});
  shapes.push_back({"small attn p^T do", 'T', 'N', 64, 32, 64, 48});
  linear("124M head", "124M head dgrad", "124M head wgrad", 1024, 768, 50257);
  return shapes;
}

struct Contender {
  std::string name;
  // Called once before the timing of a shape; what it returns runs the product.
  std::function<std::function<void()>(const Shape&, const float* a, const float* b, float* c)> prepare;
};

inline Contender ergon_contender() {
  return {"ergon", [](const Shape& s, const float* a, const float* b, float* c) -> std::function<void()> {
            const bool ta = s.trans_a == 'T', tb = s.trans_b == 'T';
            const kernels::GemmParams params = {
                .M = s.M,
                .N = s.N,
                .K = s.K,
                .batch_outer = s.batch,
                .a = {a, DType::f32, ta ? 1 : s.lda(), ta ? s.lda() : 1, s.M * s.K},
                .b = {b, DType::f32, tb ? 1 : s.ldb(), tb ? s.ldb() : 1, s.K * s.N},
                .c = {c, DType::f32, s.N, 1, s.M * s.N}};
            return [params] { kernels::cpu::gemm(params); };
          }};
}

inline double seconds(const std::function<void()>& f, int calls) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// contenders[0] is Ergon. Shapes whose name does not contain `filter` are left out.
inline void print_table(const std::vector<Contender>& contenders, const std::string& filter,
                        int repetitions) {
  std::printf("%-20s %-2s %5s %5s %5s %3s", "product", "", "M", "N", "K", "x");
  for (const Contender& c : contenders) std::printf(" %11s", c.name.c_str());
  std::printf("  GFLOP/s | ergon / best other\n");
  for (const Shape& s : gpt_shapes()) {
    if (std::string(s.name).find(filter) == std::string::npos) continue;
    const auto elements = [&](std::int64_t rows, std::int64_t cols) {
      return static_cast<std::size_t>(rows * cols * s.batch);
    };
    std::vector<float> a(elements(s.M, s.K)), b(elements(s.K, s.N)), c(elements(s.M, s.N)), expected;
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 17) - 8;
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 13) - 6;
    std::vector<std::function<void()>> runs;
    for (const Contender& contender : contenders) {
      runs.push_back(contender.prepare(s, a.data(), b.data(), c.data()));
      std::fill(c.begin(), c.end(), -1.0f);
      runs.back()();
      if (expected.empty()) expected = c;
      if (c != expected) std::printf("%s: wrong result\n", contender.name.c_str());  // whole numbers: exact
    }
    const int calls = static_cast<int>(std::clamp(5e8 / s.flops(), 1.0, 1000.0));
    std::vector<std::vector<double>> times(contenders.size());
    for (int r = 0; r < repetitions; ++r) {
      for (std::size_t i = 0; i < runs.size(); ++i) times[i].push_back(seconds(runs[i], calls));
    }
    std::printf("%-20s %c%c %5ld %5ld %5ld %3ld", s.name, s.trans_a, s.trans_b, static_cast<long>(s.M),
                static_cast<long>(s.N), static_cast<long>(s.K), static_cast<long>(s.batch));
    double best = 1e30;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      std::printf(" %11.1f", s.flops() / median(times[i]) * 1e-9);
      if (i == 0) continue;
      std::vector<double> ratios;
      for (int r = 0; r < repetitions; ++r) ratios.push_back(times[i][r] / times[0][r]);
      best = std::min(best, median(ratios));
    }
    std::printf("  %.2f\n", best);
    std::fflush(stdout);
  }
}

}  // namespace ergon::bench
