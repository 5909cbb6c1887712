#pragma once

// What tests of ops and kernels share: random tensors of any dtype and memory layout, and comparison with
// fp64 references.
//
//   for (Layout layout : kLayouts) {
//     const Tensor x = in_layout(uniform({33, 65}, {.dtype = DType::bf16}), layout);
//     EXPECT_TRUE(near(ops::exp(x), map(x, [](double v) { return std::exp(v); }),
//                      {.rtol = 2 * unit_roundoff(DType::bf16)}));
//   }

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/gradcheck.h"
#include "core/tensor.h"

namespace ergon::test {

// --- tensors ---

// Where the tensors of this header lie, and where tests are to put theirs: ERGON_TEST_DEVICE of the
// environment, or the CPU.
Device device();

struct RandomOptions {
  DType dtype = DType::f32;
  double low = -2;
  double high = 2;
  std::uint64_t seed = 1;
};

// Uniform in [low, high), rounded to dtype; integers for an integer dtype, both values for bool.
Tensor uniform(const Shape& shape, const RandomOptions& options = {});

// Whole numbers in [low, high), of any dtype: sums and products of few of them are exact.
Tensor integers(const Shape& shape, const RandomOptions& options = {});

// All NaN (floating point) or all 99: to see that every element of an output is written.
Tensor poisoned(const Shape& shape, DType dtype);

// How a tensor lies in memory. Every gap holds poison.
enum class Layout {
  contiguous,
  transposed,  // the last two dimensions are swapped in memory
  strided,     // two elements apart along the last dimension
  misaligned,  // contiguous, but one element past an aligned address
};
inline constexpr Layout kLayouts[] = {Layout::contiguous, Layout::transposed, Layout::strided,
                                      Layout::misaligned};
const char* name_of(Layout layout);

// A tensor of the same values in another layout; no gradient history.
Tensor in_layout(const Tensor& tensor, Layout layout);

inline constexpr DType kFloatingDTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64};

// --- comparison ---

// Half the distance from 1 to the next number: 2^-24 for f32, 2^-8 for bf16, 2^-11 for f16, 2^-53 for f64.
double unit_roundoff(DType dtype);
// The largest rounding error of a result too small for a relative bound: half the smallest subnormal.
double underflow_error(DType dtype);

struct Tolerance {
  double rtol = 0;
  double atol = 0;  // |got - expected| <= atol + rtol * |expected|
};

// f of every element, row-major, in fp64.
std::vector<double> map(const Tensor& x, const std::function<double(double)>& f);
// The same for two tensors, broadcast against each other.
std::vector<double> map(const Tensor& a, const Tensor& b, const std::function<double(double, double)>& f);

// Is every element of `got` (row-major) within its tolerance? NaN and infinities only match themselves. The
// failure message has the worst element's index, both values, error and tolerance, and the shape and dtype.
// No tolerance: exact.
testing::AssertionResult near(const Tensor& got, std::span<const double> expected, Tolerance tolerance = {});
testing::AssertionResult near(const Tensor& got, const Tensor& expected, Tolerance tolerance = {});
// With an absolute tolerance for each element.
testing::AssertionResult near_each(const Tensor& got, std::span<const double> expected,
                                   std::span<const double> tolerances);

// --- errors and gradients ---

// what() of the ergon::Error that `action` throws, or "no error".
std::string error_of(const std::function<void()>& action);

// autograd::gradcheck of `function` at `inputs` (f64), once for every layout.
testing::AssertionResult gradients_match(const std::function<Tensor(std::span<const Tensor>)>& function,
                                         const std::vector<Tensor>& inputs,
                                         const autograd::GradcheckOptions& options = {});

}  // namespace ergon::test
