// What the contract of kernels/pooling.h says beyond what the op uses: outputs of any content, operands off
// alignment, the first of equal maxima.

#include "kernels/pooling.h"

#include <gtest/gtest.h>

#include "core/tensor.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

// Windows of 3 x 2 that overlap and reach into the padding above and below.
Pool2dGeometry geometry(std::int64_t width) {
  return {.planes = 3,
          .input = {4, width},
          .kernel = {3, 2},
          .output = {4, width - 1},
          .stride = {1, 1},
          .padding = {1, 0}};
}

// f(output element, input element) for every position inside x, in order.
template <class F>
void for_each_position(const Pool2dGeometry& g, F&& f) {
  for (std::int64_t at = 0; at < g.planes * g.output[0] * g.output[1]; ++at) {
    const std::int64_t plane = at / (g.output[0] * g.output[1]), i = at / g.output[1] % g.output[0],
                       j = at % g.output[1];
    for (std::int64_t a = 0; a < g.kernel[0]; ++a) {
      for (std::int64_t b = 0; b < g.kernel[1]; ++b) {
        const std::int64_t row = i - g.padding[0] + a;
        if (row < 0 || row >= g.input[0]) continue;
        f(static_cast<std::size_t>(at),
          static_cast<std::size_t>((plane * g.input[0] + row) * g.input[1] + j + b));
      }
    }
  }
}

TEST(PoolingKernel, MaximumOverwritesOutputsAndTakesTheFirstOfEquals) {
  for (const DType dtype : kFloatingDTypes) {
    for (const std::int64_t width : {2, 16, 17, 33}) {
      const Pool2dGeometry g = geometry(width);
      const Shape y_shape{g.planes, g.output[0], g.output[1]}, x_shape{g.planes, g.input[0], g.input[1]};
      // Of three values, so that equals abound.
      const Tensor x = in_layout(integers(x_shape, {.dtype = dtype, .low = -1, .high = 2}),
                                 Layout::misaligned),
                   dout = integers(y_shape, {.dtype = dtype, .seed = 2});
      const std::vector<double> xs = x.to_vector<double>(), douts = dout.to_vector<double>();
      std::vector<double> ys(douts.size(), -INFINITY), dxs(xs.size());
      std::vector<std::size_t> first(ys.size());
      for_each_position(g, [&](std::size_t to, std::size_t from) {
        if (xs[from] > ys[to]) ys[to] = xs[from], first[to] = from;
      });
      for (std::size_t i = 0; i < first.size(); ++i) dxs[first[i]] += douts[i];

      const Tensor y = poisoned(y_shape, dtype), dx = poisoned(x_shape, dtype),
                   index = poisoned(y_shape, DType::i32);
      cpu::max_pool2d_forward(dtype, g, x.data_ptr(), y.data_ptr(), index.data<std::int32_t>());
      cpu::max_pool2d_backward(dtype, g, dout.data_ptr(), index.data<std::int32_t>(), dx.data_ptr());
      EXPECT_TRUE(near(y, ys)) << width;
      EXPECT_TRUE(near(dx, dxs)) << width;
    }
  }
}

TEST(PoolingKernel, AverageOverwritesOutputs) {
  for (const DType dtype : kFloatingDTypes) {
    for (const bool count_padding : {true, false}) {
      Pool2dGeometry g = geometry(17);
      g.count_padding = count_padding;
      const Shape y_shape{g.planes, g.output[0], g.output[1]}, x_shape{g.planes, g.input[0], g.input[1]};
      const Tensor x = integers(x_shape, {.dtype = dtype}),
                   dout = integers(y_shape, {.dtype = dtype, .seed = 2});
      const std::vector<double> xs = x.to_vector<double>(), douts = dout.to_vector<double>();
      std::vector<double> ys(douts.size()), dxs(xs.size()), inside(ys.size());
      for_each_position(g, [&](std::size_t to, std::size_t) { inside[to] += 1; });
      const auto divisor = [&](std::size_t to) { return count_padding ? 6.0 : inside[to]; };
      for_each_position(g, [&](std::size_t to, std::size_t from) {
        ys[to] += xs[from] / divisor(to);
        dxs[from] += douts[to] / divisor(to);
      });
      const Tensor y = poisoned(y_shape, dtype), dx = poisoned(x_shape, dtype);
      cpu::avg_pool2d_forward(dtype, g, x.data_ptr(), y.data_ptr());
      cpu::avg_pool2d_backward(dtype, g, dout.data_ptr(), dx.data_ptr());
      // At most 6 quotients of magnitude 2 / 4, each rounded, and as many sums; then the rounding to dtype.
      const double acc = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
      const Tolerance tolerance{.rtol = 1.01 * unit_roundoff(dtype), .atol = 12 * 6 * 0.5 * acc};
      EXPECT_TRUE(near(y, ys, tolerance));
      EXPECT_TRUE(near(dx, dxs, tolerance));
    }
  }
}

}  // namespace
}  // namespace ergon::kernels
