// What the contract of kernels/conv2d.h says beyond what the op uses: outputs and workspace of any content,
// operands off alignment, exact sums of whole numbers.

#include "kernels/conv2d.h"

#include <gtest/gtest.h>

#include "core/tensor.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

Conv2dGeometry geometry(std::int64_t width, std::int64_t groups, std::int64_t group_outputs,
                        std::int64_t stride) {
  Conv2dGeometry g{.batch = 2,
                   .in_channels = 2 * groups,
                   .out_channels = groups * group_outputs,
                   .groups = groups,
                   .input = {3, width},
                   .kernel = {3, 2},
                   .stride = {1, stride},
                   .padding = {1, 0},
                   .dilation = {1, 1}};
  g.output = {3, (width - 2) / stride + 1};
  return g;
}

// f(y element, x element, w element) for every product.
template <class F>
void for_each_product(const Conv2dGeometry& g, F&& f) {
  std::int64_t at = 0;
  for (std::int64_t n = 0; n < g.batch; ++n)
    for (std::int64_t o = 0; o < g.out_channels; ++o)
      for (std::int64_t i = 0; i < g.output[0]; ++i)
        for (std::int64_t j = 0; j < g.output[1]; ++j, ++at)
          for (std::int64_t c = 0; c < g.group_inputs(); ++c)
            for (std::int64_t a = 0; a < g.kernel[0]; ++a)
              for (std::int64_t b = 0; b < g.kernel[1]; ++b) {
                const std::int64_t row = i * g.stride[0] - g.padding[0] + a, col = j * g.stride[1] + b;
                if (row < 0 || row >= g.input[0]) continue;
                const std::int64_t channel = o / g.group_outputs() * g.group_inputs() + c;
                f(at, ((n * g.in_channels + channel) * g.input[0] + row) * g.input[1] + col,
                  ((o * g.group_inputs() + c) * g.kernel[0] + a) * g.kernel[1] + b);
              }
}

void expect_exact(const Conv2dGeometry& g, DType dtype) {
  const Shape x_shape{g.batch, g.in_channels, g.input[0], g.input[1]},
      w_shape{g.out_channels, g.group_inputs(), g.kernel[0], g.kernel[1]},
      y_shape{g.batch, g.out_channels, g.output[0], g.output[1]};
  const auto operand = [&](const Shape& shape, std::uint64_t seed) {
    return in_layout(integers(shape, {.dtype = dtype, .low = -2, .high = 3, .seed = seed}),
                     Layout::misaligned);
  };
  const Tensor x = operand(x_shape, 1), w = operand(w_shape, 2), dout = operand(y_shape, 3);
  const std::vector<double> xs = x.to_vector<double>(), ws = w.to_vector<double>(),
                            douts = dout.to_vector<double>();
  std::vector<double> ys(douts.size()), dxs(xs.size()), dws(ws.size());
  for_each_product(g, [&](std::int64_t y_at, std::int64_t x_at, std::int64_t w_at) {
    const auto y = static_cast<std::size_t>(y_at), i = static_cast<std::size_t>(x_at),
               k = static_cast<std::size_t>(w_at);
    ys[y] += xs[i] * ws[k];
    dxs[i] += douts[y] * ws[k];
    dws[k] += douts[y] * xs[i];
  });

  const Tensor y = poisoned(y_shape, dtype), dx = poisoned(x_shape, dtype), dw = poisoned(w_shape, dtype);
  const DType sums = dtype == DType::f64 ? DType::f64 : DType::f32;
  const Tensor workspace =
      poisoned({cpu::conv2d_workspace(Conv2dPass::backward_weight, dtype, g) / size_of(sums)}, sums);
  cpu::conv2d_forward(dtype, g, x.data_ptr(), w.data_ptr(), nullptr, y.data_ptr(), nullptr);
  cpu::conv2d_backward_input(dtype, g, dout.data_ptr(), w.data_ptr(), dx.data_ptr(), nullptr);
  cpu::conv2d_backward_weight(dtype, g, x.data_ptr(), dout.data_ptr(), dw.data_ptr(), workspace.data_ptr());
  EXPECT_TRUE(near(y, ys));
  EXPECT_TRUE(near(dx, dxs));
  EXPECT_TRUE(near(dw, dws));
}

TEST(Conv2dKernel, OverwritesOutputsWithExactSums) {
  for (const DType dtype : {DType::f32, DType::f16, DType::f64}) {
    for (const std::int64_t width : {2, 15, 16, 17, 31, 32, 33, 50}) {
      for (const std::int64_t stride : {1, 2}) {
        SCOPED_TRACE(testing::Message() << name_of(dtype) << " width " << width << " stride " << stride);
        expect_exact(geometry(width, 1, 9, stride), dtype);
        expect_exact(geometry(width, 3, 1, stride), dtype);
      }
    }
  }
}

}  // namespace
}  // namespace ergon::kernels
