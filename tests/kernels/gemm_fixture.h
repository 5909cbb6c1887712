#pragma once

// Runs products and compares every element with fp64.

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "tests/kernels/gemm_cases.h"

namespace ergon::kernels::test {

class GemmTest : public testing::Test {
 protected:
  // Runs params, whose pointers lead into the storage of `matrices`.
  virtual void multiply(const GemmParams& params, const std::vector<Matrices*>& matrices) = 0;

  // Relative error of one product a b, and of one addition, before the rounding to c's dtype.
  virtual double product_error(const Problem&) const { return 0; }
  virtual double unit(const Problem& p) const {
    return roundoff(p.a == DType::f64 ? DType::f64 : DType::f32);
  }

  double draw(bool integers) {
    return integers ? std::uniform_int_distribution<int>(-3, 3)(random_)
                    : std::uniform_real_distribution<double>(-1, 1)(random_);
  }
  void fill(Matrices& x, const Problem& p, std::int64_t rows, std::int64_t cols) {
    for (std::int64_t o = 0; o < p.outer; ++o) {
      for (std::int64_t n = 0; n < p.inner; ++n) {
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t j = 0; j < cols; ++j) x.set(o, n, i, j, draw(p.integers));
        }
      }
    }
  }

  void run(const Problem& p) {
    Matrices a(p.a, p.outer, p.inner, p.M, p.K, p.layout_a, p.first);
    Matrices b(p.b, p.outer, p.inner, p.K, p.N, p.layout_b, p.first);
    Matrices c(p.c, p.outer, p.inner, p.M, p.N, p.layout_c, p.first);
    fill(a, p, p.M, p.K);
    fill(b, p, p.K, p.N);
    run(p, a, b, c);
  }

  void run(const Problem& p, Matrices& a, Matrices& b, Matrices& c) {
    if (p.beta != 0) fill(c, p, p.M, p.N);
    Matrices pre = c, residual = c, bias(p.bias, 1, 1, 1, p.N), expected = c;
    pre.poison();
    if (p.activation_backward) fill(pre, p, p.M, p.N);
    if (p.with_residual) fill(residual, p, p.M, p.N);
    for (std::int64_t j = 0; j < p.N; ++j) bias.set(0, 0, 0, j, draw(p.integers));
    const Matrices before = c;
    multiply({.M = p.M,
              .N = p.N,
              .K = p.K,
              .batch_outer = p.outer,
              .batch_inner = p.inner,
              .a = a.operand<const void*>(),
              .b = b.operand<const void*>(),
              .c = c.operand<void*>(),
              .alpha = p.alpha,
              .beta = p.beta,
              .bias = p.with_bias ? bias.operand<const void*>().data : nullptr,
              .bias_dtype = p.bias,
              .activation = p.activation,
              .pre_activation =
                  p.with_pre_activation || p.activation_backward ? pre.operand<void*>().data : nullptr,
              .activation_backward = p.activation_backward,
              .residual = p.with_residual ? residual.operand<const void*>().data : nullptr,
              .allow_tf32 = p.allow_tf32},
             {&a, &b, &c, &pre, &residual, &bias});
    const double unit = this->unit(p);
    const double atol = p.c == DType::f16 ? 0x1p-25 : 0;  // subnormal results
    const auto rounding = [&](double x, double bound) {
      return bound > 0 ? bound + roundoff(p.c) * (std::fabs(x) + bound) + atol : 0;
    };
    int failures = 0;
    for (std::int64_t o = 0; o < p.outer; ++o) {
      for (std::int64_t n = 0; n < p.inner; ++n) {
        for (std::int64_t i = 0; i < p.M; ++i) {
          for (std::int64_t j = 0; j < p.N; ++j) {
            double sum = 0, magnitude = 0;
            for (std::int64_t k = 0; k < p.K; ++k) {
              const double product = a.get(o, n, i, k) * b.get(o, n, k, j);
              sum += product;
              magnitude += std::fabs(product);
            }
            const double scaled = p.beta == 0 ? 0 : p.beta * before.get(o, n, i, j);
            const double shift = p.with_bias ? bias.get(0, 0, 0, j) : 0;
            const double x = p.alpha * sum + scaled + shift;
            // K additions, each rounded relative to a partial sum that `magnitude` bounds; then scaling,
            // beta, bias.
            double bound = static_cast<double>(p.K + 4) * unit
                               * (std::fabs(p.alpha) * magnitude + std::fabs(scaled) + std::fabs(shift))
                           + product_error(p) * std::fabs(p.alpha) * magnitude;
            if (p.integers) bound = 0;
            double y = 0;
            if (p.activation_backward) {
              const double slope = activation_derivative(p.activation, pre.get(o, n, i, j));
              y = x * slope;
              // The derivatives are below 1.2 and computed within 16 roundings.
              bound = 1.2 * bound + (p.activation > Activation::relu ? 16 * unit * std::fabs(x) : 0);
            } else {
              y = activate(p.activation, x);
              if (p.with_pre_activation) {
                expected.set(o, n, i, j, x);
                failures += !matches(p, "pre-activation", pre.get(o, n, i, j), x, expected.get(o, n, i, j),
                                     rounding(x, bound), i, j);
              }
              // The slopes of the activations are below 1.2; their own errors are those of activations.h.
              if (p.activation > Activation::relu) {
                bound = 1.2 * bound + 8 * unit * std::max(std::fabs(x), std::fabs(y));
              }
            }
            if (p.with_residual) {
              y += residual.get(o, n, i, j);
              if (bound > 0) bound += unit * (std::fabs(y) + bound);
            }
            expected.set(o, n, i, j, y);
            failures +=
                !matches(p, "c", c.get(o, n, i, j), y, expected.get(o, n, i, j), rounding(y, bound), i, j);
            if (failures > 5) return;
          }
        }
      }
    }
    // Elements now as expected; the memory around them must be as before.
    for (std::int64_t o = 0; o < p.outer; ++o) {
      for (std::int64_t n = 0; n < p.inner; ++n) {
        for (std::int64_t i = 0; i < p.M; ++i) {
          for (std::int64_t j = 0; j < p.N; ++j) c.set(o, n, i, j, 0), expected.set(o, n, i, j, 0);
        }
      }
    }
    EXPECT_TRUE(c.storage() == expected.storage()) << "wrote outside of c: " << p.describe();
  }

 private:
  // Within `bound` of the exact value, or for bound 0 equal to it rounded to c's dtype.
  static bool matches(const Problem& p, const char* what, double got, double exact, double rounded,
                      double bound, std::int64_t i, std::int64_t j) {
    if (bound == 0 ? got == rounded : std::fabs(got - exact) <= bound) return true;
    ADD_FAILURE() << what << "[" << i << ", " << j << "] = " << got << ", expected " << exact << " +- "
                  << bound << ": " << p.describe();
    return false;
  }

  std::mt19937 random_{42};
};

}  // namespace ergon::kernels::test
