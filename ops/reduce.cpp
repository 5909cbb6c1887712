#include "ops/reduce.h"

#include "core/autocast.h"
#include "core/autograd.h"
#include "kernels/reduce.h"
#include "ops/arithmetic.h"
#include "ops/compare.h"
#include "ops/dispatch.h"
#include "ops/elementwise.h"

namespace ergon::ops {
namespace {

using autograd::Gradients;
using autograd::NeedsGrad;
using kernels::ReduceOp;

using DimMask = std::array<bool, Dims::kMaxDims>;

DimMask mask_of(const char* name, const Dims& dims, int ndim) {
  DimMask mask{};
  if (dims.empty()) std::fill_n(mask.begin(), ndim, true);
  for (std::int64_t dim : dims) {
    const int position = wrap_dim(dim, ndim, name);
    ERGON_CHECK(!mask[static_cast<std::size_t>(position)], "[{}] dims {} name dimension {} twice", name, dims,
                position);
    mask[static_cast<std::size_t>(position)] = true;
  }
  return mask;
}

// The shape after the reduction, with size 1 for each reduced dimension or without it.
Shape reduced_shape(const Shape& shape, const DimMask& mask, bool keepdim) {
  Shape result;
  for (int dim = 0; dim < shape.size(); ++dim) {
    if (!mask[static_cast<std::size_t>(dim)]) {
      result.push_back(shape[dim]);
    } else if (keepdim) {
      result.push_back(1);
    }
  }
  return result;
}

Tensor reduce(const char* name, ReduceOp op, const Tensor& x, const DimMask& mask, bool keepdim, DType dtype,
              double divisor = 1) {
  const OpScope scope(name, x);
  Tensor y = empty(reduced_shape(x.shape(), mask, keepdim), {dtype, x.device()});
  const kernels::ReduceArgs args{.op = op,
                                 .compute = detail::compute_type(dtype),
                                 .shape = x.shape(),
                                 .reduced = mask,
                                 .x = detail::operand(x, x.shape()),
                                 .y = y.data_ptr(),
                                 .y_dtype = dtype,
                                 .divisor = divisor};
  const Tensor workspace =
      empty({ERGON_KERNEL(x.device(), reduce_workspace, args)}, {args.compute, x.device()});
  ERGON_KERNEL(x.device(), reduce, args, workspace.data_ptr());
  return y;
}

std::int64_t count_reduced(const Shape& shape, const DimMask& mask) {
  std::int64_t count = 1;
  for (int dim = 0; dim < shape.size(); ++dim) {
    if (mask[static_cast<std::size_t>(dim)]) count *= shape[dim];
  }
  return count;
}

Tensor reduce_extremum(const char* name, ReduceOp op, const Tensor& x, const Dims& dims, bool keepdim) {
  const DimMask mask = mask_of(name, dims, x.dim());
  ERGON_CHECK(count_reduced(x.shape(), mask) > 0, "[{}] shape {}, dims {}: no elements to choose from", name,
              x.shape(), dims);
  const Tensor y = reduce(name, op, x, mask, keepdim, x.dtype());
  return autograd::record(
      name, y, {x},
      [saved_x = autograd::save(x), saved_y = autograd::save(y), mask](const Tensor& grad_output,
                                                                       const NeedsGrad&) {
        const Tensor input = saved_x.get();
        const Shape kept = reduced_shape(input.shape(), mask, true);
        const Tensor ties = eq(input, saved_y.get().view(kept));
        const Tensor count = sum_to_shape(ties.to(DType::i64), kept).to(detail::compute_type(input.dtype()));
        const Tensor share = div(grad_output.reshape(kept), count).to(input.dtype());
        return Gradients{where(ties, share, 0)};
      });
}

// A tensor seen as (outer, length, inner) around a dimension.
struct Around {
  Around(const Tensor& x, int dim) {
    if (x.dim() == 0) return;
    length = x.shape()[dim];
    for (int i = 0; i < dim; ++i) outer *= x.shape()[i];
    for (int i = dim + 1; i < x.dim(); ++i) inner *= x.shape()[i];
  }
  std::int64_t outer = 1, length = 1, inner = 1;
};

ValuesAndIndices find(const char* name, ReduceOp op, const Tensor& x, int dim, bool keepdim,
                      bool want_values) {
  const OpScope scope(name, x);
  const Around around(x, dim);
  ERGON_CHECK(around.length > 0, "[{}] shape {}, dim {}: no elements to choose from", name, x.shape(), dim);
  ERGON_CHECK(around.length < std::int64_t{1} << 31, "[{}] dimension {} of size {}: expected less than 2^31",
              name, dim, around.length);
  DimMask mask{};
  mask[static_cast<std::size_t>(dim)] = true;
  const Shape shape = reduced_shape(x.shape(), mask, keepdim);
  ValuesAndIndices result{.values = want_values ? empty(shape, x.options()) : Tensor(),
                          .indices = empty(shape, {DType::i64, x.device()})};
  NoGradGuard no_grad;
  const Tensor dense = x.contiguous();
  const kernels::ExtremumArgs args{.op = op,
                                   .dtype = x.dtype(),
                                   .x = dense.data_ptr(),
                                   .values = want_values ? result.values.data_ptr() : nullptr,
                                   .indices = result.indices.data<std::int64_t>(),
                                   .outer = around.outer,
                                   .length = around.length,
                                   .inner = around.inner};
  const Tensor workspace =
      empty({ERGON_KERNEL(x.device(), extremum_workspace, args)}, {DType::u8, x.device()});
  ERGON_KERNEL(x.device(), extremum, args, workspace.data_ptr());
  return result;
}

ValuesAndIndices find_with_grad(const char* name, ReduceOp op, const Tensor& x, std::int64_t dim,
                                bool keepdim) {
  const int position = wrap_dim(dim, x.dim(), name);
  ValuesAndIndices result = find(name, op, x, position, keepdim, true);
  result.values =
      autograd::record(name, result.values, {x},
                       [indices = autograd::save(result.indices), shape = x.shape(),
                        around = Around(x, position)](const Tensor& grad_output, const NeedsGrad&) {
                         Tensor grad = zeros(shape, grad_output.options());
                         ERGON_KERNEL(grad.device(), scatter_along, size_of(grad.dtype()), grad.data_ptr(),
                                      grad_output.contiguous().data_ptr(), indices.get().data<std::int64_t>(),
                                      around.outer, around.length, around.inner);
                         return Gradients{grad};
                       });
  return result;
}

Tensor find_index(const char* name, ReduceOp op, const Tensor& x) {
  NoGradGuard no_grad;
  return find(name, op, x.reshape({x.numel()}), 0, false, false).indices;
}

// Sums spread their gradient evenly over what was summed.
Tensor record_spread(const char* name, const Tensor& y, const Tensor& x, const DimMask& mask,
                     double divisor) {
  return autograd::record(
      name, y, {x},
      [shape = x.shape(), dtype = x.dtype(), mask, divisor](const Tensor& grad_output, const NeedsGrad&) {
        Tensor grad = grad_output.reshape(reduced_shape(shape, mask, true));
        if (divisor != 1) grad = div(grad, divisor);
        return Gradients{grad.to(dtype).expand(shape)};
      });
}

}  // namespace

Tensor sum(const Tensor& x, const Dims& dims, bool keepdim) {
  const DimMask mask = mask_of("sum", dims, x.dim());
  const DType dtype = is_floating_point(x.dtype()) ? autocast::dtype_for("sum", x) : DType::i64;
  return record_spread("sum", reduce("sum", ReduceOp::sum, x, mask, keepdim, dtype), x, mask, 1);
}

Tensor mean(const Tensor& x, const Dims& dims, bool keepdim) {
  const DimMask mask = mask_of("mean", dims, x.dim());
  const auto count = static_cast<double>(count_reduced(x.shape(), mask));
  const DType dtype = detail::floating_result(autocast::dtype_for("mean", x));
  return record_spread("mean", reduce("mean", ReduceOp::sum, x, mask, keepdim, dtype, count), x, mask, count);
}

Tensor amax(const Tensor& x, const Dims& dims, bool keepdim) {
  return reduce_extremum("amax", ReduceOp::max, x, dims, keepdim);
}
Tensor amin(const Tensor& x, const Dims& dims, bool keepdim) {
  return reduce_extremum("amin", ReduceOp::min, x, dims, keepdim);
}

ValuesAndIndices max(const Tensor& x, std::int64_t dim, bool keepdim) {
  return find_with_grad("max", ReduceOp::max, x, dim, keepdim);
}
ValuesAndIndices min(const Tensor& x, std::int64_t dim, bool keepdim) {
  return find_with_grad("min", ReduceOp::min, x, dim, keepdim);
}

Tensor argmax(const Tensor& x) { return find_index("argmax", ReduceOp::max, x); }
Tensor argmax(const Tensor& x, std::int64_t dim, bool keepdim) {
  return find("argmax", ReduceOp::max, x, wrap_dim(dim, x.dim(), "argmax"), keepdim, false).indices;
}
Tensor argmin(const Tensor& x) { return find_index("argmin", ReduceOp::min, x); }
Tensor argmin(const Tensor& x, std::int64_t dim, bool keepdim) {
  return find("argmin", ReduceOp::min, x, wrap_dim(dim, x.dim(), "argmin"), keepdim, false).indices;
}

Tensor sum_to_shape(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  ERGON_CHECK(shape.size() <= x.dim() && broadcast_shapes(x.shape(), shape, "sum_to_shape") == x.shape(),
              "[sum_to_shape] shape {} does not broadcast to {}", shape, x.shape());
  const int added = x.dim() - shape.size();
  DimMask mask{};
  for (int dim = 0; dim < x.dim(); ++dim) {
    mask[static_cast<std::size_t>(dim)] = dim < added || (shape[dim - added] == 1 && x.shape()[dim] != 1);
  }
  const DType dtype = is_floating_point(x.dtype()) ? x.dtype() : DType::i64;
  const Tensor y = reduce("sum_to_shape", ReduceOp::sum, x, mask, true, dtype);
  return record_spread("sum_to_shape", y, x, mask, 1).reshape(shape);
}

namespace detail {

RestoreInput::RestoreInput(const Tensor& input) {
  if (!input.defined()) return;
  shape_ = input.shape();
  dtype_ = input.dtype();
}

}  // namespace detail
}  // namespace ergon::ops
