#include "ops/conv2d.h"

#include "core/autocast.h"
#include "core/autograd.h"
#include "kernels/conv2d.h"
#include "ops/dispatch.h"
#include "ops/reduce.h"

namespace ergon::ops {
namespace {

using kernels::Conv2dGeometry;
using kernels::Conv2dPass;

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Conv2dOptions& o) {
  ERGON_CHECK(x.dim() == 4 && weight.dim() == 4,
              "[conv2d] x {} and weight {}: expected (N, C, H, W) and (O, C / groups, kH, kW)", x.shape(),
              weight.shape());
  const std::int64_t channels = x.shape()[1], outputs = weight.shape()[0];
  ERGON_CHECK(o.groups > 0 && channels % o.groups == 0 && outputs % o.groups == 0,
              "[conv2d] groups = {} must divide the channels of x {} and weight {}", o.groups, x.shape(),
              weight.shape());
  ERGON_CHECK(weight.shape()[1] == channels / o.groups,
              "[conv2d] x {} and weight {}: x.shape[1] / groups = {} / {} must equal weight.shape[1] = {}",
              x.shape(), weight.shape(), channels, o.groups, weight.shape()[1]);
  ERGON_CHECK(numel(weight.shape()) > 0, "[conv2d] weight {} has no elements", weight.shape());
  ERGON_CHECK(x.dtype() == weight.dtype() && is_floating_point(x.dtype()),
              "[conv2d] x is {}, weight {}: expected one floating dtype", name_of(x.dtype()),
              name_of(weight.dtype()));
  for (int d = 0; d < 2; ++d) {
    ERGON_CHECK(o.stride[d] > 0 && o.dilation[d] > 0 && o.padding[d] >= 0,
                "[conv2d] stride {}, padding {}, dilation {}: expected at least 1, 0 and 1", o.stride[d],
                o.padding[d], o.dilation[d]);
    const std::int64_t reach = o.dilation[d] * (weight.shape()[2 + d] - 1) + 1;
    ERGON_CHECK(x.shape()[2 + d] > 0 && x.shape()[2 + d] + 2 * o.padding[d] >= reach,
                "[conv2d] x {} with padding {}: smaller than the kernel of weight {} with dilation {}",
                x.shape(), o.padding[d], weight.shape(), o.dilation[d]);
  }
  if (!bias.defined()) return;
  ERGON_CHECK(bias.shape() == Shape{outputs} && bias.dtype() == x.dtype(),
              "[conv2d] bias {} {}: expected ({},) {}", bias.shape(), name_of(bias.dtype()), outputs,
              name_of(x.dtype()));
}

Conv2dGeometry geometry_of(const Shape& x, const Shape& weight, const Conv2dOptions& o) {
  Conv2dGeometry g{.batch = x[0], .in_channels = x[1], .out_channels = weight[0], .groups = o.groups};
  for (int d = 0; d < 2; ++d) {
    g.input[d] = x[2 + d];
    g.kernel[d] = weight[2 + d];
    g.output[d] = (x[2 + d] + 2 * o.padding[d] - o.dilation[d] * (weight[2 + d] - 1) - 1) / o.stride[d] + 1;
  }
  g.stride = o.stride;
  g.padding = o.padding;
  g.dilation = o.dilation;
  return g;
}

// Undefined where the pass needs none.
Tensor workspace_of(Conv2dPass pass, const Tensor& operand, const Conv2dGeometry& g) {
  const std::int64_t bytes = ERGON_KERNEL(operand.device(), conv2d_workspace, pass, operand.dtype(), g);
  return bytes == 0 ? Tensor() : empty({bytes}, {DType::u8, operand.device()});
}

void* data_of(const Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

}  // namespace

Tensor conv2d(const Tensor& x_any, const Tensor& weight_any, const Tensor& bias_any,
              const Conv2dOptions& options) {
  OpScope scope("conv2d", x_any, weight_any, bias_any);
  const auto [x_in, weight_in, bias_in] = autocast::cast("conv2d", x_any, weight_any, bias_any);
  check(x_in, weight_in, bias_in, options);
  const Conv2dGeometry g = geometry_of(x_in.shape(), weight_in.shape(), options);
  Tensor x, weight, bias;
  {
    NoGradGuard no_grad;
    x = x_in.contiguous();
    weight = weight_in.contiguous();
    if (bias_in.defined()) bias = bias_in.contiguous();
  }
  const Tensor y = empty({g.batch, g.out_channels, g.output[0], g.output[1]}, x.options());
  const Tensor workspace = workspace_of(Conv2dPass::forward, x, g);
  ERGON_KERNEL(x.device(), conv2d_forward, x.dtype(), g, x.data_ptr(), weight.data_ptr(), data_of(bias),
               y.data_ptr(), data_of(workspace));

  using autograd::save;
  return autograd::record(
      "conv2d", y, {x_in, weight_in, bias_in},
      [x = save(x), weight = save(weight), g](const Tensor& grad_output, const autograd::NeedsGrad& needs) {
        const Tensor dy = grad_output.contiguous(), x2 = x.get(), w = weight.get();
        autograd::Gradients grads(3);
        if (needs[0]) {
          grads[0] = empty(x2.shape(), x2.options());
          const Tensor scratch = workspace_of(Conv2dPass::backward_input, dy, g);
          ERGON_KERNEL(dy.device(), conv2d_backward_input, dy.dtype(), g, dy.data_ptr(), w.data_ptr(),
                       grads[0].data_ptr(), data_of(scratch));
        }
        if (needs[1]) {
          grads[1] = empty(w.shape(), w.options());
          const Tensor scratch = workspace_of(Conv2dPass::backward_weight, dy, g);
          ERGON_KERNEL(dy.device(), conv2d_backward_weight, dy.dtype(), g, x2.data_ptr(), dy.data_ptr(),
                       grads[1].data_ptr(), data_of(scratch));
        }
        if (needs[2]) grads[2] = sum(dy, {0, 2, 3});
        return grads;
      });
}

}  // namespace ergon::ops
