#include "ops/pooling.h"

#include <limits>

#include "core/autograd.h"
#include "kernels/pooling.h"
#include "ops/dispatch.h"
#include "ops/reduce.h"

namespace ergon::ops {
namespace {

using kernels::Pool2dGeometry;

void check_images(const char* op, const Tensor& x) {
  ERGON_CHECK(x.dim() == 4 && is_floating_point(x.dtype()),
              "[{}] x {} {}: expected (N, C, H, W) of floating point", op, x.shape(), name_of(x.dtype()));
}

Pool2dGeometry geometry_of(const char* op, const Tensor& x, const Pool2dOptions& o) {
  check_images(op, x);
  Pool2dGeometry g{.planes = x.shape()[0] * x.shape()[1], .count_padding = o.count_include_pad};
  for (int d = 0; d < 2; ++d) {
    const std::int64_t size = x.shape()[2 + d], stride = o.stride[d] == 0 ? o.kernel[d] : o.stride[d];
    ERGON_CHECK(o.kernel[d] > 0 && stride > 0, "[{}] kernel {}, stride {}: expected positive numbers", op,
                o.kernel[d], stride);
    ERGON_CHECK(o.padding[d] >= 0 && 2 * o.padding[d] <= o.kernel[d],
                "[{}] padding {}: expected at least 0 and at most half the kernel's {}", op, o.padding[d],
                o.kernel[d]);
    ERGON_CHECK(size > 0 && size + 2 * o.padding[d] >= o.kernel[d],
                "[{}] x {} with padding {}: smaller than the kernel, {}", op, x.shape(), o.padding[d],
                o.kernel[d]);
    g.input[d] = size;
    g.kernel[d] = o.kernel[d];
    g.stride[d] = stride;
    g.padding[d] = o.padding[d];
    g.output[d] = (size + 2 * o.padding[d] - o.kernel[d]) / stride + 1;
  }
  ERGON_CHECK(g.input[0] * g.input[1] <= std::numeric_limits<std::int32_t>::max(),
              "[{}] x {}: planes of 2^31 elements or more are not supported", op, x.shape());
  return g;
}

Shape output_shape(const Tensor& x, const Pool2dGeometry& g) {
  return {x.shape()[0], x.shape()[1], g.output[0], g.output[1]};
}

Tensor contiguous_data(const Tensor& x) {
  NoGradGuard no_grad;
  return x.contiguous();
}

}  // namespace

Tensor max_pool2d(const Tensor& x_in, const Pool2dOptions& options) {
  const OpScope scope("max_pool2d", x_in);
  const Pool2dGeometry g = geometry_of("max_pool2d", x_in, options);
  const Tensor x = contiguous_data(x_in), y = empty(output_shape(x, g), x.options()),
               index = empty(y.shape(), {DType::i32, x.device()});
  ERGON_KERNEL(x.device(), max_pool2d_forward, x.dtype(), g, x.data_ptr(), y.data_ptr(),
               index.data<std::int32_t>());
  return autograd::record("max_pool2d", y, {x_in},
                          [index, g, shape = x.shape()](const Tensor& grad_output, const auto&) {
                            const Tensor dy = grad_output.contiguous(), dx = empty(shape, dy.options());
                            ERGON_KERNEL(dy.device(), max_pool2d_backward, dy.dtype(), g, dy.data_ptr(),
                                         index.data<std::int32_t>(), dx.data_ptr());
                            return autograd::Gradients{dx};
                          });
}

Tensor avg_pool2d(const Tensor& x_in, const Pool2dOptions& options) {
  const OpScope scope("avg_pool2d", x_in);
  const Pool2dGeometry g = geometry_of("avg_pool2d", x_in, options);
  const Tensor x = contiguous_data(x_in), y = empty(output_shape(x, g), x.options());
  ERGON_KERNEL(x.device(), avg_pool2d_forward, x.dtype(), g, x.data_ptr(), y.data_ptr());
  return autograd::record(
      "avg_pool2d", y, {x_in}, [g, shape = x.shape()](const Tensor& grad_output, const auto&) {
        const Tensor dy = grad_output.contiguous(), dx = empty(shape, dy.options());
        ERGON_KERNEL(dy.device(), avg_pool2d_backward, dy.dtype(), g, dy.data_ptr(), dx.data_ptr());
        return autograd::Gradients{dx};
      });
}

Tensor global_avg_pool2d(const Tensor& x) {
  check_images("global_avg_pool2d", x);
  return mean(x, {2, 3});
}

}  // namespace ergon::ops
