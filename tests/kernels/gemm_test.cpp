#include "kernels/gemm.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/half.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "tests/kernels/gemm_fixture.h"

namespace ergon::kernels {
namespace {

using test::kActivations;
using test::kAllLayouts;
using test::kNarrow;
using test::Layout;
using test::Matrices;
using test::Problem;

class Gemm : public test::GemmTest {
 protected:
  void multiply(const GemmParams& params, const std::vector<Matrices*>&) override { cpu::gemm(params); }
};

TEST_F(Gemm, WholeNumbersAreExactAroundTheTileSizes) {
  for (const std::int64_t M : {1, 2, 13, 14, 15, 29}) {
    for (const std::int64_t N : {1, 15, 16, 17, 31, 32, 33}) {
      for (const std::int64_t K : {1, 15, 16, 17, 33}) {
        for (const Layout layout_a : {Layout::row_major, Layout::column_major}) {
          for (const Layout layout_b : {Layout::row_major, Layout::column_major}) {
            run({.M = M, .N = N, .K = K, .layout_a = layout_a, .layout_b = layout_b});
          }
        }
        run({.M = M, .N = N, .K = K, .a = DType::f64, .b = DType::f64, .c = DType::f64});
      }
    }
  }
}

TEST_F(Gemm, EveryCombinationOfLayouts) {
  for (const Layout a : kAllLayouts) {
    for (const Layout b : kAllLayouts) {
      for (const Layout c : kAllLayouts) {
        run({.M = 30, .N = 37, .K = 21, .layout_a = a, .layout_b = b, .layout_c = c});
        run({.M = 45, .N = 64, .K = 16, .layout_a = a, .layout_b = b, .layout_c = c, .beta = 1});
      }
    }
  }
}

TEST_F(Gemm, EveryCombinationOfDTypes) {
  for (const DType a : kNarrow) {
    for (const DType b : kNarrow) {
      for (const DType c : kNarrow) {
        for (const Layout layout : {Layout::row_major, Layout::column_major}) {
          run({.M = 17, .N = 49, .K = 35, .a = a, .b = b, .c = c, .layout_a = layout, .layout_b = layout});
        }
      }
    }
  }
}

// Pairs of bf16 along K: an odd K, panels of 14 rows read in place and packed, several blocks along K.
TEST_F(Gemm, Bf16InEveryLayout) {
  for (const Layout a : kAllLayouts) {
    for (const Layout b : kAllLayouts) {
      for (const std::int64_t K : {1, 2, 31, 34, 67}) {
        Problem p = {.M = 30, .N = 50, .K = K, .a = DType::bf16, .b = DType::bf16};
        p.layout_a = a, p.layout_b = b;
        run(p);
        p.c = DType::bf16, p.with_bias = true, p.bias = DType::bf16, p.beta = 1;
        run(p);
      }
    }
    for (const DType c : {DType::f32, DType::bf16}) {
      Problem p = {.M = 17, .N = 33, .K = 4125, .a = DType::bf16, .b = DType::bf16, .c = c, .layout_a = a};
      p.integers = false;
      run(p);
    }
  }
}

// A linear layer while generating: few rows times (out, in) or (in, out) weights.
TEST_F(Gemm, FewRows) {
  for (std::int64_t M = 1; M <= 5; ++M) {
    for (const std::int64_t N : {1, 3, 33, 70}) {
      for (const DType weights : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
        for (const Layout layout : {Layout::column_major, Layout::row_major}) {
          Problem p = {.M = M, .N = N, .K = 37, .b = weights, .layout_b = layout};
          if (weights == DType::f64) p.a = p.c = p.bias = weights;
          run(p);
          p.layout_a = Layout::strided, p.alpha = 2, p.beta = 1, p.with_bias = true;
          run(p);
          p.integers = false, p.K = 1100, p.activation = Activation::silu, p.with_pre_activation = true;
          run(p);
        }
      }
    }
    run({.M = M,
         .N = 2100,
         .K = 19,
         .b = DType::bf16,
         .layout_b = Layout::padded});  // several blocks of columns
  }
}

// Sums over several blocks of K are rounded to c's dtype once: an exact sum gives the nearest bf16.
TEST_F(Gemm, LongSumsRoundOnce) {
  for (const DType c : kNarrow) {
    run({.M = 20, .N = 600, .K = 2100, .c = c});
    run({.M = 33, .N = 40, .K = 1100, .c = c, .layout_b = Layout::column_major, .alpha = 2, .beta = 0.5});
    run({.M = 5,
         .N = 33,
         .K = 3000,
         .a = c,
         .b = c,
         .c = c,
         .with_bias = true,
         .with_pre_activation = true,
         .activation = Activation::relu});
  }
  run({.M = 15, .N = 17, .K = 1100, .a = DType::f64, .b = DType::f64, .c = DType::f64, .beta = 1});
}

TEST_F(Gemm, RealNumbersStayWithinTheErrorBound) {
  for (const Layout a : {Layout::row_major, Layout::column_major}) {
    for (const Layout b : {Layout::row_major, Layout::column_major}) {
      run({.M = 65, .N = 80, .K = 300, .layout_a = a, .layout_b = b, .integers = false});
      run({.M = 200,
           .N = 400,
           .K = 70,
           .layout_a = a,
           .layout_b = b,
           .alpha = 0.3,
           .beta = -0.7,
           .integers = false});
      run({.M = 33,
           .N = 31,
           .K = 1030,
           .a = DType::bf16,
           .b = DType::f16,
           .c = DType::bf16,
           .layout_a = a,
           .layout_b = b,
           .integers = false});
      run({.M = 33,
           .N = 31,
           .K = 700,
           .a = DType::f64,
           .b = DType::f64,
           .c = DType::f64,
           .layout_a = a,
           .layout_b = b,
           .beta = 1,
           .integers = false});
    }
  }
}

TEST_F(Gemm, AlphaAndBeta) {
  for (const double alpha : {1.0, -2.0, 0.0}) {
    for (const double beta : {0.0, 1.0, 3.0}) {
      for (const DType c : kNarrow) run({.M = 19, .N = 34, .K = 20, .c = c, .alpha = alpha, .beta = beta});
    }
  }
}

TEST_F(Gemm, Epilogues) {
  for (const Activation activation : kActivations) {
    for (const bool bias : {false, true}) {
      for (const bool pre : {false, true}) {
        Problem p = {.M = 31,
                     .N = 50,
                     .K = 24,
                     .with_bias = bias,
                     .with_pre_activation = pre,
                     .activation = activation,
                     .integers = false};
        run(p);
        p.layout_c = Layout::column_major, p.beta = 1;
        run(p);
        p.c = p.bias = DType::bf16, p.layout_c = Layout::padded;
        run(p);
        p.c = DType::f16, p.N = 32, p.K = 1100;
        run(p);
        p.a = p.b = p.c = p.bias = DType::f64, p.K = 9;
        run(p);
      }
    }
  }
}

TEST_F(Gemm, ResidualAndActivationBackward) {
  for (const Activation activation : kActivations) {
    for (const bool backward : {false, true}) {
      for (const bool residual : {false, true}) {
        Problem p = {.M = 31, .N = 50, .K = 24, .with_bias = true, .activation = activation};
        p.integers = false, p.activation_backward = backward, p.with_residual = residual;
        run(p);
        p.beta = 2, p.layout_c = Layout::column_major, p.with_bias = false, p.with_pre_activation = !backward;
        run(p);
        p.c = DType::bf16, p.layout_c = Layout::padded, p.K = 1100;
        run(p);
        p.a = p.b = p.c = p.bias = DType::f64, p.K = 9, p.outer = 2, p.inner = 3;
        run(p);
      }
    }
  }
}

TEST_F(Gemm, EmptySums) {
  run({.M = 15, .N = 40, .K = 0});
  run({.M = 15, .N = 40, .K = 0, .beta = 2});
  run({.M = 3,
       .N = 40,
       .K = 0,
       .c = DType::bf16,
       .beta = 1,
       .with_bias = true,
       .activation = Activation::relu});
}

TEST_F(Gemm, NothingToDo) {
  run({.M = 0, .N = 40, .K = 7});
  run({.M = 15, .N = 0, .K = 7});
  run({.M = 4, .N = 4, .K = 4, .outer = 0});
  cpu::gemm({.M = 0, .N = 3, .K = 5});  // no pointers at all
}

TEST_F(Gemm, Batches) {
  run({.M = 17, .N = 33, .K = 9, .outer = 2, .inner = 3});
  run({.M = 70, .N = 65, .K = 80, .outer = 3, .inner = 1, .layout_b = Layout::column_major});
  run({.M = 64,
       .N = 64,
       .K = 32,
       .outer = 5,
       .inner = 4,
       .with_bias = true,
       .with_pre_activation = true,
       .activation = Activation::gelu_tanh,
       .integers = false});
  run({.M = 20,
       .N = 20,
       .K = 20,
       .outer = 7,
       .inner = 2,
       .a = DType::bf16,
       .b = DType::bf16,
       .c = DType::bf16,
       .layout_c = Layout::column_major});
}

TEST_F(Gemm, BatchStrideZeroRepeatsAMatrix) {
  Problem p = {.M = 18, .N = 35, .K = 12, .outer = 3, .inner = 4};
  Matrices a(p.a, p.outer, p.inner, p.M, p.K), b(p.b, p.outer, p.inner, p.K, p.N), c(p.c, 3, 4, p.M, p.N);
  b.set_strides(p.K * p.N, 0, p.N, 1);  // grouped queries: the heads of a batch share one b
  fill(a, p, p.M, p.K);
  fill(b, p, p.K, p.N);
  run(p, a, b, c);
  a.set_strides(0, p.M * p.K, p.K, 1);
  b.set_strides(0, 0, 1, p.K);
  fill(a, p, p.M, p.K);
  fill(b, p, p.K, p.N);
  c.poison();
  run(p, a, b, c);
}

// q, k, v as (batch, time, heads, dim), scores as (batch, heads, time, time), without copies.
TEST_F(Gemm, AttentionLayouts) {
  constexpr std::int64_t kBatch = 2, kTime = 37, kHeads = 3, kDim = 16;
  const auto interleaved = [&] {
    Matrices x(DType::f32, kBatch, kHeads, kTime, kDim + 1);
    x.set_strides(kTime * kHeads * kDim, kDim, kHeads * kDim, 1);
    return x;
  };
  const Problem scores = {.M = kTime, .N = kTime, .K = kDim, .outer = kBatch, .inner = kHeads};
  Matrices q = interleaved(), k = interleaved(), out = interleaved();
  fill(q, scores, kTime, kDim);
  fill(k, scores, kTime, kDim);
  Matrices k_transposed = k;
  k_transposed.set_strides(kTime * kHeads * kDim, kDim, 1, kHeads * kDim);
  Matrices s(DType::f32, kBatch, kHeads, kTime, kTime);
  run(scores, q, k_transposed, s);
  fill(s, scores, kTime, kTime);
  const Problem mix = {.M = kTime, .N = kDim, .K = kTime, .outer = kBatch, .inner = kHeads};
  run(mix, s, k, out);  // also: neither heads nor the memory around are disturbed
}

TEST_F(Gemm, NanAndInfinityReachTheirRowAndColumnOnly) {
  Problem p = {.M = 30, .N = 40, .K = 33};
  Matrices a(p.a, 1, 1, p.M, p.K), b(p.b, 1, 1, p.K, p.N), c(p.c, 1, 1, p.M, p.N);
  fill(a, p, p.M, p.K);
  fill(b, p, p.K, p.N);
  a.set(0, 0, 29, 32, NAN);
  b.set(0, 0, 0, 39, INFINITY);
  a.set(0, 0, 3, 0, 0.0);  // 0 * infinity
  cpu::gemm({.M = p.M,
             .N = p.N,
             .K = p.K,
             .a = a.operand<const void*>(),
             .b = b.operand<const void*>(),
             .c = c.operand<void*>()});
  for (int i = 0; i < p.M; ++i) {
    for (int j = 0; j < p.N; ++j) {
      const double got = c.get(0, 0, i, j);
      if (i == 29 || (i == 3 && j == 39)) {
        EXPECT_TRUE(std::isnan(got)) << i << ", " << j;
      } else if (j == 39) {
        EXPECT_FALSE(std::isfinite(got)) << i;
      } else {
        EXPECT_TRUE(std::isfinite(got)) << i << ", " << j;
      }
    }
  }
}

std::vector<float> product(std::int64_t M, std::int64_t N, std::int64_t K) {
  std::vector<float> a(static_cast<std::size_t>(M * K)), b(static_cast<std::size_t>(K * N));
  std::vector<float> c(static_cast<std::size_t>(M * N), NAN);
  std::mt19937 random(7);
  for (float& x : a) x = std::uniform_real_distribution<float>(-1, 1)(random);
  for (float& x : b) x = std::uniform_real_distribution<float>(-1, 1)(random);
  cpu::gemm({.M = M,
             .N = N,
             .K = K,
             .a = {a.data(), DType::f32, K, 1},
             .b = {b.data(), DType::f32, 1, K},
             .c = {c.data(), DType::f32, N, 1}});
  return c;
}

TEST(GemmThreads, BitsDoNotDependOnTheRunOrTheNumberOfThreads) {
  const auto check = [](std::int64_t M, std::int64_t N, std::int64_t K) {
    const std::vector<float> once = product(M, N, K);
    EXPECT_TRUE(product(M, N, K) == once);
#ifdef _OPENMP
    const int threads = omp_get_max_threads();
    for (const int count : {1, 2, 3, 5}) {
      omp_set_num_threads(count);
      EXPECT_TRUE(product(M, N, K) == once) << count << " threads";
    }
    omp_set_num_threads(threads);
#endif
  };
  check(150, 333, 1500);
  check(3, 2000, 700);
}

TEST(GemmThreads, CallsFromAParallelRegionRunSideBySide) {
  const std::vector<float> expected = product(64, 100, 200);
  std::vector<std::vector<float>> got(8);
  parallel_for(0, 8, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) got[static_cast<std::size_t>(i)] = product(64, 100, 200);
  });
  for (const auto& c : got) EXPECT_TRUE(c == expected);
}

// Large and aligned, the pre-activation is stored past the caches; the last columns are half a tile.
TEST(GemmPreActivation, IsThePlainProductWhereItIsStoredPastTheCaches) {
  const std::int64_t M = 300, N = 1040, K = 4;
  const Tensor a = randn({M, K}), b = randn({K, N}), c = empty({M, N});
  const Tensor plain = full({M, N}, NAN), pre = full({M, N}, NAN);
  GemmParams params = {.M = M, .N = N, .K = K};
  params.a = {a.data_ptr(), DType::f32, K, 1};
  params.b = {b.data_ptr(), DType::f32, N, 1};
  params.c = {plain.data_ptr(), DType::f32, N, 1};
  cpu::gemm(params);
  params.c.data = c.data_ptr();
  params.activation = Activation::relu;
  params.pre_activation = pre.data_ptr();
  cpu::gemm(params);
  EXPECT_TRUE(equal_bits(pre, plain));
}

std::string error_of(const GemmParams& params) {
  try {
    cpu::gemm(params);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(GemmErrors, NameTheDTypes) {
  GemmParams params = {.M = 1, .N = 1, .K = 1};
  params.a.dtype = DType::i32;
  EXPECT_EQ(error_of(params), "[gemm] dtype i32: expected f32, bf16, f16 or f64");
  params.a.dtype = DType::f64;
  EXPECT_EQ(error_of(params),
            "[gemm] dtypes a f64, b f32, c f32, bias f32: f64 does not mix with the others");
}

}  // namespace
}  // namespace ergon::kernels
