// What the row-wise kernels' contracts say beyond what the ops use: outputs over inputs, strides, absent
// operands.

#include <vector>

#include <gtest/gtest.h>

#include "core/tensor.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"
#include "kernels/swiglu.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

RowMatrix matrix(const Tensor& t) { return {t.data_ptr(), t.dtype(), t.stride(0)}; }
// Columns [1, 1 + cols) of a wider matrix of NaN: rows that lie apart and are not aligned.
Tensor apart(std::int64_t rows, std::int64_t cols, DType dtype) {
  return poisoned({rows, cols + 3}, dtype).slice(1, 1, 1 + cols);
}
Tensor apart(const Tensor& values) {
  return apart(values.size(0), values.size(1), values.dtype()).copy_(values);
}

TEST(RowKernels, CrossEntropyGradientOverTheLogits) {
  for (DType dtype : kFloatingDTypes) {
    const Tensor logits = uniform({7, 1100}, {.dtype = dtype}), other = apart(7, 1100, dtype);
    const std::vector<std::int64_t> targets{0, 1, 1099, -100, 5, 1024, 1023};
    const Tensor lse = poisoned({7}, dtype == DType::f64 ? DType::f64 : DType::f32);
    const Tensor weight = full({}, 0.5, lse.options());
    CrossEntropyParams params{.rows = 7,
                              .cols = 1100,
                              .logits = matrix(logits),
                              .targets = targets.data(),
                              .lse = lse.data_ptr(),
                              .weight = weight.data_ptr(),
                              .dlogits = matrix(other)};
    cpu::cross_entropy_forward(params);
    cpu::cross_entropy_backward(params);
    params.dlogits = params.logits;
    cpu::cross_entropy_backward(params);
    EXPECT_TRUE(equal_bits(logits, other.contiguous())) << name_of(dtype);
  }
}

TEST(RowKernels, NormGradientOverTheIncomingOne) {
  for (DType dtype : kFloatingDTypes) {
    const DType statistics = dtype == DType::f64 ? DType::f64 : DType::f32;
    const Tensor x = apart(uniform({40, 33}, {.dtype = dtype}));
    const Tensor dout = uniform({40, 33}, {.dtype = dtype, .seed = 2}), dx = apart(40, 33, dtype);
    const Tensor y = apart(40, 33, dtype), mean = poisoned({40}, statistics),
                 rstd = poisoned({40}, statistics);
    cpu::layer_norm_forward({.rows = 40,
                             .cols = 33,
                             .x = matrix(x),
                             .y = matrix(y),
                             .mean = mean.data_ptr(),
                             .rstd = rstd.data_ptr()});
    NormBackwardParams params{.rows = 40,
                              .cols = 33,
                              .dout = matrix(dout),
                              .s = matrix(x),
                              .mean = mean.data_ptr(),
                              .rstd = rstd.data_ptr(),
                              .dx = matrix(dx)};
    cpu::layer_norm_backward(params);
    params.dx = params.dout;
    cpu::layer_norm_backward(params);
    EXPECT_TRUE(equal_bits(dout, dx.contiguous())) << name_of(dtype);
  }
}

TEST(RowKernels, SwigluGradientsOverTheInputs) {
  for (DType dtype : kFloatingDTypes) {
    const Tensor gate = uniform({9, 1100}, {.dtype = dtype}),
                 up = uniform({9, 1100}, {.dtype = dtype, .seed = 2});
    const Tensor dout = apart(uniform({9, 1100}, {.dtype = dtype, .seed = 3}));
    const Tensor dgate = apart(9, 1100, dtype), dup = apart(9, 1100, dtype);
    SwigluParams params{.rows = 9,
                        .cols = 1100,
                        .gate = matrix(gate),
                        .up = matrix(up),
                        .dout = matrix(dout),
                        .dgate = matrix(dgate),
                        .dup = matrix(dup)};
    cpu::swiglu_backward(params);
    params.dgate = params.gate, params.dup = params.up;
    cpu::swiglu_backward(params);
    EXPECT_TRUE(equal_bits(gate, dgate.contiguous()) && equal_bits(up, dup.contiguous())) << name_of(dtype);
  }
}

TEST(RowKernels, DropoutInPlace) {
  for (DType dtype : kFloatingDTypes) {
    const Tensor x = uniform({3000}, {.dtype = dtype}), y = poisoned({3000}, dtype);
    DropoutParams params{
        .numel = 3000, .dtype = dtype, .x = x.data_ptr(), .y = y.data_ptr(), .p = 0.4, .stream = {3, 8}};
    cpu::dropout(params);
    params.y = x.data_ptr();
    cpu::dropout(params);
    EXPECT_TRUE(equal_bits(x, y)) << name_of(dtype);
  }
}

TEST(RowKernels, EmbeddingWithRowsApart) {
  const std::vector<std::int32_t> indices{3, 1, 3, 0};
  const EmbeddingParams params{
      .vocab = 5, .cols = 40, .count = 4, .indices = indices.data(), .index_dtype = DType::i32};
  const Tensor dout = apart(integers({4, 40})), dweight = apart(5, 40, DType::f32);
  std::vector<std::int64_t> workspace(9);
  cpu::embedding_backward(params, matrix(dout), matrix(dweight), workspace.data());
  const std::vector<float> d = dout.to_vector<float>();
  std::vector<double> expected(200);
  for (std::size_t i = 0; i < d.size(); ++i)
    expected[static_cast<std::size_t>(indices[i / 40]) * 40 + i % 40] += d[i];
  EXPECT_TRUE(near(dweight, expected));
}

}  // namespace
}  // namespace ergon::kernels
