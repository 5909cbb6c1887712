// Products, convolutions and attention by cuBLASLt and cuDNN against Ergon's own. The libraries of
// tests/doubles take their place.

#include "kernels/providers.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#if __has_include(<cudnn_version.h>)
#include <cudnn_version.h>
#endif

#include "kernels/gemm.h"
#include "ops/attention.h"
#include "ops/conv2d.h"
#include "ops/linear.h"
#include "ops/matmul.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using kernels::Activation;
using kernels::AttentionProvider;
using kernels::ConvProvider;
using kernels::GemmParams;
using kernels::GemmProvider;

const Device kCuda = Device::cuda();

// Names the double's file for the library that `variable` stands for. Returns calls it has computed so far.
class Double {
 public:
  Double(const char* variable, const char* file) : file_(file) { setenv(variable, file, 1); }
  int calls() const {
    void* library = dlopen(file_, RTLD_NOW | RTLD_NOLOAD);
    return library == nullptr ? 0 : reinterpret_cast<int (*)()>(dlsym(library, "ergon_double_calls"))();
  }

 private:
  const char* file_;
};

Tensor integers(const Shape& shape, DType dtype, std::uint64_t seed) {
  return test::integers(shape, {.dtype = dtype, .low = -3, .high = 4, .seed = seed}).to(kCuda);
}

template <class Pointer>
kernels::GemmOperand<Pointer> operand(const Tensor& t) {
  return {t.data_ptr(), t.dtype(), t.strides()[2], t.strides()[3], t.strides()[0], t.strides()[1]};
}

// a (outer, inner, M, K), b (outer, inner, K, N), c (outer, inner, M, N)
GemmParams product(const Tensor& a, const Tensor& b, const Tensor& c) {
  return {.M = c.size(2),
          .N = c.size(3),
          .K = a.size(3),
          .batch_outer = c.size(0),
          .batch_inner = c.size(1),
          .a = operand<const void*>(a),
          .b = operand<const void*>(b),
          .c = operand<void*>(c)};
}

class Cublaslt : public testing::Test {
 protected:
  void TearDown() override { kernels::set_gemm_provider(GemmProvider::ergon); }

  // Computes params, into `c` and `pre`, by both providers.
  struct Result {
    Tensor c, pre;
  };
  Result run(GemmProvider provider, GemmParams params, const Tensor& c, const Tensor& pre, bool workspace) {
    kernels::set_gemm_provider(provider);
    const Result result{c.clone(), pre.clone()};
    params.c.data = result.c.data_ptr();
    if (params.pre_activation != nullptr) params.pre_activation = result.pre.data_ptr();
    const Tensor scratch = empty({kernels::cuda::gemm_workspace(params) + 16}, {DType::u8, kCuda});
    if (workspace) params.workspace = scratch.data_ptr();
    kernels::cuda::gemm(params);
    return result;
  }
  // Expects `calls` calls of the library, and our results.
  void compare(const GemmParams& params, const Tensor& c, const Tensor& pre, int calls,
               test::Tolerance tolerance = {}, bool workspace = true) {
    const Result ours = run(GemmProvider::ergon, params, c, pre, workspace);
    const int before = library_.calls();
    const Result theirs = run(GemmProvider::cublaslt, params, c, pre, workspace);
    EXPECT_EQ(library_.calls() - before, calls);
    EXPECT_TRUE(test::near(theirs.c, ours.c, tolerance));
    EXPECT_TRUE(test::near(theirs.pre, ours.pre));
  }

  Double library_{"ERGON_CUBLASLT_LIBRARY", ERGON_CUBLASLT_DOUBLE};
};

TEST_F(Cublaslt, AMissingLibraryIsAnError) {
  setenv("ERGON_CUBLASLT_LIBRARY", "no_such_library.so", 1);
  kernels::set_gemm_provider(GemmProvider::cublaslt);
  const Tensor a = integers({2, 3}, DType::f32, 1), b = integers({3, 2}, DType::f32, 2);
  const std::string error = test::error_of([&] { ops::matmul(a, b); });
  EXPECT_EQ(error.find("cannot load no_such_library.so (ERGON_CUBLASLT_LIBRARY of the environment can name "
                       "another file): "),
            0u)
      << error;
}

// Whole numbers: exact in any order of the sum.
TEST_F(Cublaslt, EveryTransposeBatchAndDtype) {
  for (const DType dtype : test::kFloatingDTypes) {
    for (const bool a_turned : {false, true}) {
      for (const bool b_turned : {false, true}) {
        Tensor a = integers(a_turned ? Shape{2, 3, 5, 4} : Shape{2, 3, 4, 5}, dtype, 1),
               b = integers(b_turned ? Shape{2, 3, 6, 5} : Shape{2, 3, 5, 6}, dtype, 2);
        if (a_turned) a = a.transpose(2, 3);
        if (b_turned) b = b.transpose(2, 3);
        const Tensor c = integers({2, 3, 4, 6}, dtype, 3);
        GemmParams params = product(a, b, c);
        params.alpha = 2, params.beta = 3;
        compare(params, c, c, 1);
        compare(params, c, c, 1, {}, false);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(Cublaslt, StridesOfRowsAndBatches) {
  const Tensor a = integers({2, 5, 3, 7}, DType::f32, 1).slice(3, 1, 5).slice(1, 0, 4),
               b = integers({1, 4, 4, 9}, DType::f32, 2).slice(3, 0, 6).expand({2, 4, 4, 6}),
               c = integers({2, 4, 3, 6}, DType::f32, 3);
  compare(product(a, b, c), c, c, 2);  // two dimensions of the batch that are not one in a
  const Tensor column = integers({1, 1, 8, 5}, DType::f32, 1).slice(3, 2, 3),
               row = integers({1, 1, 1, 4}, DType::f32, 2), outer = integers({1, 1, 8, 4}, DType::f32, 3);
  compare(product(column, row, outer), outer, outer, 1);
}

TEST_F(Cublaslt, HalfPrecisionIntoFp32Gradients) {
  const Tensor a = integers({1, 1, 4, 8}, DType::bf16, 1), b = integers({1, 1, 8, 6}, DType::bf16, 2),
               c = integers({1, 1, 4, 6}, DType::f32, 3);
  GemmParams params = product(a, b, c);
  params.beta = 1;
  compare(params, c, c, 1);
}

TEST_F(Cublaslt, Epilogues) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Tensor a = integers({1, 2, 4, 5}, dtype, 1), b = integers({1, 2, 5, 16}, dtype, 2),
                 c = integers({1, 2, 4, 16}, dtype, 3), bias = integers({16}, dtype, 4),
                 pre = test::uniform({1, 2, 4, 16}, {.dtype = dtype, .seed = 5}).to(kCuda);
    // Both round the same exact sum; ours computes the GELU in fp32 within 8 roundings (activations.h).
    const test::Tolerance gelu{.rtol = 2 * test::unit_roundoff(dtype) + 16 * 0x1p-24,
                               .atol = 32 * 0x1p-24 + test::underflow_error(dtype)};
    GemmParams params = product(a, b, c);
    params.alpha = 0.125;
    params.bias = bias.data_ptr(), params.bias_dtype = dtype;
    compare(params, c, c, 1);
    params.activation = Activation::relu;
    compare(params, c, c, 1);
    params.activation = Activation::gelu_tanh;
    compare(params, c, c, 1, gelu);
    params.pre_activation = pre.data_ptr();
    compare(params, c, pre, 1, gelu);
    params.bias = nullptr;
    compare(params, c, pre, 1, gelu);
    params.activation_backward = true;
    // The sum, below 64 here, times a derivative within 16 roundings.
    compare(params, c, pre, 1, {.rtol = gelu.rtol, .atol = 64 * 32 * 0x1p-24 + test::underflow_error(dtype)});
    params.activation_backward = false, params.activation = Activation::none;
    params.pre_activation = nullptr, params.residual = pre.data_ptr();
    compare(params, c, c, 1, {.rtol = 2 * test::unit_roundoff(dtype)});
    if (HasFailure()) return;
  }
}

TEST_F(Cublaslt, WhatItCannotDoErgonComputes) {
  const Tensor a = integers({1, 1, 4, 5}, DType::f32, 1), b = integers({1, 1, 5, 6}, DType::f32, 2),
               c = integers({1, 1, 4, 6}, DType::f32, 3);
  GemmParams params = product(a, b, c);
  params.activation = Activation::silu;
  compare(params, c, c, 0);
  params.activation = Activation::gelu_tanh, params.pre_activation = c.data_ptr();  // rows of 6 elements
  compare(params, c, c, 0);
  const Tensor apart = integers({1, 1, 4, 10}, DType::f32, 1).slice(3, 0, 10, 2);
  compare(product(apart, b, c), c, c, 0);
  compare(product(a.to(DType::bf16), b, c), c, c, 0);
}

TEST_F(Cublaslt, LinearTrainsAsBefore) {
  std::vector<Tensor> results[2];
  for (const GemmProvider provider : {GemmProvider::ergon, GemmProvider::cublaslt}) {
    kernels::set_gemm_provider(provider);
    const int before = library_.calls();
    Tensor x = integers({2, 3, 16}, DType::f32, 1), w = integers({8, 16}, DType::f32, 2),
           b = integers({8}, DType::f32, 3);
    for (Tensor* t : {&x, &w, &b}) t->set_requires_grad(true);
    const Tensor y = ops::linear(x, w, b);
    y.backward(integers(y.shape(), DType::f32, 4));
    EXPECT_EQ(library_.calls() - before, provider == GemmProvider::ergon ? 0 : 3);
    results[provider == GemmProvider::ergon ? 0 : 1] = {y.detach(), x.grad(), w.grad(), b.grad()};
  }
  for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(test::near(results[1][i], results[0][i])) << i;
}

#if __has_include(<cudnn.h>)
class Cudnn : public testing::Test {
 protected:
  void TearDown() override { kernels::set_conv_provider(ConvProvider::ergon); }
  Double library_{"ERGON_CUDNN_LIBRARY", ERGON_CUDNN_DOUBLE};
};

TEST_F(Cudnn, AMissingLibraryIsAnError) {
  setenv("ERGON_CUDNN_LIBRARY", "no_such_library.so", 1);
  kernels::set_conv_provider(ConvProvider::cudnn);
  const Tensor x = integers({1, 1, 3, 3}, DType::f32, 1), w = integers({1, 1, 2, 2}, DType::f32, 2);
  const std::string error = test::error_of([&] { ops::conv2d(x, w); });
  EXPECT_EQ(error.find("cannot load no_such_library.so (ERGON_CUDNN_LIBRARY of the environment can name "
                       "another file): "),
            0u)
      << error;
}

TEST_F(Cudnn, ForwardAndGradientsOfWholeNumbers) {
  const ops::Conv2dOptions geometries[] = {
      {}, {.stride = {2, 1}, .padding = {1, 2}}, {.padding = {2, 1}, .dilation = {2, 1}, .groups = 2}};
  for (const DType dtype : test::kFloatingDTypes) {
    for (const ops::Conv2dOptions& options : geometries) {
      std::vector<Tensor> results[2];
      for (const ConvProvider provider : {ConvProvider::ergon, ConvProvider::cudnn}) {
        kernels::set_conv_provider(provider);
        const int before = library_.calls();
        Tensor x = integers({2, 4, 6, 5}, dtype, 1), w = integers({6, 4 / options.groups, 3, 2}, dtype, 2),
               b = integers({6}, dtype, 3);
        for (Tensor* t : {&x, &w, &b}) t->set_requires_grad(true);
        const Tensor y = ops::conv2d(x, w, b, options);
        y.backward(test::integers(y.shape(), {.dtype = dtype, .low = -1, .high = 2, .seed = 4}).to(kCuda));
        EXPECT_EQ(library_.calls() - before, provider == ConvProvider::ergon ? 0 : 3);
        results[provider == ConvProvider::ergon ? 0 : 1] = {y.detach(), x.grad(), w.grad(), b.grad()};
      }
      for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_TRUE(test::near(results[1][i], results[0][i])) << name_of(dtype) << " " << i;
      }
    }
  }
}

TEST_F(Cudnn, AnEmptyBatchNeedsNoLibrary) {
  kernels::set_conv_provider(ConvProvider::cudnn);
  Tensor x = zeros({0, 3, 5, 5}, {.device = kCuda}), w = ones({2, 3, 3, 3}, {.device = kCuda});
  w.set_requires_grad(true);
  const Tensor y = ops::conv2d(x, w);
  y.backward(zeros(y.shape(), {.device = kCuda}));
  EXPECT_TRUE(test::near(w.grad(), std::vector<double>(54, 0)));
}

#if CUDNN_VERSION >= 91301
class CudnnAttention : public testing::Test {
 protected:
  void TearDown() override {
    kernels::set_attention_provider(AttentionProvider::ergon);
    set("version", std::size_t{92600});
    set("kernels", true);
    set("execution", 0);
  }
  // Of the double, whose library is loaded by the first call of it.
  template <class T>
  static void set(const std::string& what, T value) {
    void* library = dlopen(ERGON_CUDNN_DOUBLE, RTLD_NOW);
    reinterpret_cast<void (*)(T)>(dlsym(library, ("ergon_double_set_" + what).c_str()))(value);
  }

  struct Result {
    Tensor o, lse;
  };
  static Result run(AttentionProvider provider, const std::vector<Tensor>& qkv,
                    ops::AttentionOptions options) {
    kernels::set_attention_provider(provider);
    Result result;
    options.softmax_lse = &result.lse;
    result.o = ops::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], options);
    return result;
  }
  // Expects `calls` calls of the library, and our results: both round the same numbers, ours the
  // probabilities too, which weigh values below 2.
  void compare(const std::vector<Tensor>& qkv, const ops::AttentionOptions& options, int calls) {
    const Result ours = run(AttentionProvider::ergon, qkv, options);
    const int before = library_.calls();
    const Result theirs = run(AttentionProvider::cudnn, qkv, options);
    EXPECT_EQ(library_.calls() - before, calls);
    const double unit = test::unit_roundoff(qkv[0].dtype());
    EXPECT_TRUE(test::near(theirs.o, ours.o, {.rtol = 2 * unit, .atol = 4 * unit}));
    // Sums of at most 16 products and of as many exponentials, and one of each of our approximations.
    EXPECT_TRUE(test::near(theirs.lse, ours.lse, {.atol = 128 * 0x1p-24}));
  }
  using Gradients = std::vector<std::vector<double>>;  // of q, k and v
  static Gradients gradients(AttentionProvider provider, const std::vector<Tensor>& qkv,
                             const ops::AttentionOptions& options, DType dtype, Device device) {
    kernels::set_attention_provider(provider);
    std::vector<Tensor> in;
    for (const Tensor& t : qkv) in.push_back(t.to(dtype).to(device).detach().set_requires_grad(true));
    const Tensor o = ops::scaled_dot_product_attention(in[0], in[1], in[2], options);
    o.backward(test::uniform(o.shape(), {.dtype = qkv[0].dtype(), .seed = 9}).to(dtype).to(device));
    Gradients result;
    for (const Tensor& t : in) result.push_back(t.grad().to_vector<double>());
    return result;
  }
  // Expects `calls` calls of the library in a forward and a backward, and errors of at most twice those of
  // ours, and one rounding more, which cuDNN does to each gradient of a group's two heads.
  void compare_gradients(const std::vector<Tensor>& qkv, const ops::AttentionOptions& options, int calls) {
    const DType dtype = qkv[0].dtype();
    const auto ergon = AttentionProvider::ergon;
    const Gradients exact = gradients(ergon, qkv, options, DType::f64, Device::cpu()),
                    ours = gradients(ergon, qkv, options, dtype, kCuda);
    const int before = library_.calls();
    const Gradients theirs = gradients(AttentionProvider::cudnn, qkv, options, dtype, kCuda);
    EXPECT_EQ(library_.calls() - before, calls);
    for (std::size_t i = 0; i < 3; ++i) {
      double error = 0, our_error = 0, largest = 0;
      for (std::size_t j = 0; j < exact[i].size(); ++j) {
        const double here = std::abs(theirs[i][j] - exact[i][j]);
        if (!(here <= error)) error = here;
        our_error = std::max(our_error, std::abs(ours[i][j] - exact[i][j]));
        largest = std::max(largest, std::abs(exact[i][j]));
      }
      EXPECT_LE(error, 2 * our_error + 2 * test::unit_roundoff(dtype) * largest) << "gradient " << i;
    }
  }
  static std::vector<Tensor> operands(DType dtype, std::int64_t seqlen_q, std::int64_t seqlen_k) {
    std::vector<Tensor> result;
    for (const std::int64_t i : {0, 1, 2}) {
      const Shape shape{2, i == 0 ? seqlen_q : seqlen_k, i == 0 ? 4 : 2, 16};
      result.push_back(
          test::uniform(shape, {.dtype = dtype, .seed = static_cast<std::uint64_t>(i + 1)}).to(kCuda));
    }
    return result;
  }
  Double library_{"ERGON_CUDNN_LIBRARY", ERGON_CUDNN_DOUBLE};
};

TEST_F(CudnnAttention, ForwardOfGroupedHeads) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    compare(operands(dtype, 9, 13), {}, 1);
    compare(operands(dtype, 9, 13), {.softmax_scale = 0.7}, 1);
    compare(operands(dtype, 11, 11), {.causal = true}, 1);
  }
}

TEST_F(CudnnAttention, BackwardOfGroupedHeads) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const bool deterministic : {true, false}) {
      compare_gradients(operands(dtype, 9, 13), {.softmax_scale = 0.7, .deterministic = deterministic}, 2);
      compare_gradients(operands(dtype, 11, 11), {.causal = true, .deterministic = deterministic}, 2);
    }
  }
}

TEST_F(CudnnAttention, StridedOperandsAreReadWhereTheyAre) {
  const Tensor qkv = test::uniform({2, 7, 3 * 2 * 16}, {.dtype = DType::bf16}).to(kCuda);
  std::vector<Tensor> parts;
  for (const std::int64_t i : {0, 1, 2})
    parts.push_back(qkv.slice(2, i * 32, (i + 1) * 32).view({2, 7, 2, 16}));
  compare(parts, {.causal = true}, 1);
  compare_gradients(parts, {.causal = true}, 2);  // into pieces of one gradient
}

TEST_F(CudnnAttention, WhatItCannotDoErgonComputes) {
  compare(operands(DType::f32, 5, 6), {}, 0);
  compare(operands(DType::bf16, 5, 6), {.causal = true}, 0);
  compare(operands(DType::bf16, 5, 6), {.window_left = 2}, 0);
  compare(operands(DType::bf16, 5, 6), {.softcap = 2}, 0);
  set("version", std::size_t{91900});  // masks came with 9.21
  compare(operands(DType::bf16, 6, 6), {.causal = true}, 0);
  compare(operands(DType::bf16, 6, 6), {}, 1);
  compare_gradients(operands(DType::bf16, 6, 6), {.causal = true}, 1);  // the backward's
  set("version", std::size_t{91500});
  compare_gradients(operands(DType::bf16, 6, 6), {}, 1);  // the forward's
  set("version", std::size_t{92600});
  compare_gradients(operands(DType::bf16, 1, 1), {}, 1);  // the forward's
  set("kernels", false);
  compare_gradients(operands(DType::bf16, 6, 7), {}, 0);
}

TEST_F(CudnnAttention, AFailureOfTheLibraryIsAnError) {
  kernels::set_attention_provider(AttentionProvider::cudnn);
  Tensor q = operands(DType::bf16, 4, 4)[0].set_requires_grad(true);
  const Tensor o = ops::scaled_dot_product_attention(q, q, q);
  set("execution", 5000);  // CUDNN_STATUS_EXECUTION_FAILED
  EXPECT_EQ(test::error_of([&] { o.backward(ones(o.shape(), o.options())); }),
            "[attention] cudnnBackendExecute: CUDNN_STATUS_EXECUTION_FAILED");
  set("version", std::size_t{91300});
  EXPECT_EQ(test::error_of([&] { ops::scaled_dot_product_attention(q, q, q); }),
            "[attention] cudnn 91300: expected 91301 (9.13.1) or newer");
}
#endif

#endif

}  // namespace
}  // namespace ergon
