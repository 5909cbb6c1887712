#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/op_scope.h"
#include "core/tensor_impl.h"
#include "ops/arithmetic.h"
#include "ops/cross_entropy.h"
#include "ops/dispatch.h"
#include "ops/gemm.h"
#include "ops/row_view.h"

namespace ergon::ops {
namespace {

using kernels::GemmOperand;

// Bytes of logits held at a time. Each chunk reads the weight twice and its gradient once more, so that large
// chunks cost less traffic; from here on the matrix products no longer gain.
constexpr std::int64_t kChunkBytes = 64 << 20;

std::int64_t rows_per_chunk(std::int64_t rows, std::int64_t classes, std::int64_t element_size) {
  const std::int64_t most = std::max<std::int64_t>(kChunkBytes / (classes * element_size), 16);
  const std::int64_t chunks = std::max<std::int64_t>((rows + most - 1) / most, 1);
  return (rows + chunks - 1) / chunks;  // of equal size
}

GemmOperand<const void*> transposed(GemmOperand<const void*> matrix) {
  std::swap(matrix.row_stride, matrix.col_stride);
  return matrix;
}

// The address of the element `offset` after the first.
void* at(const Tensor& tensor, std::int64_t offset) {
  return static_cast<char*>(tensor.data_ptr()) + offset * size_of(tensor.dtype());
}

void check(const Tensor& hidden, const Tensor& weight, const CrossEntropyOptions& options) {
  check_rows("linear_cross_entropy", "hidden", hidden);
  ERGON_CHECK(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) == hidden.size(-1),
              "[linear_cross_entropy] hidden {} and weight {}: expected a weight (classes, {})",
              hidden.shape(), weight.shape(), hidden.size(-1));
  ERGON_CHECK(weight.dtype() == hidden.dtype(),
              "[linear_cross_entropy] hidden is {}, weight is {}: expected the same dtype",
              name_of(hidden.dtype()), name_of(weight.dtype()));
  ERGON_CHECK(options.reduction != Reduction::none,
              "[linear_cross_entropy] reduction none: expected mean or sum; use linear and cross_entropy");
}

// What the logits' gradients of a mean are multiplied by in half precision, so that many rows do not push
// them below f16's range; a power of two, which the products divide by again. The mean's gradients are at
// most 1 in size: 2^15 keeps them finite.
double gradient_scale(DType dtype, std::int64_t rows) {
  if (!is_half(dtype)) return 1;
  return static_cast<double>(
      std::bit_floor(static_cast<std::uint64_t>(std::clamp<std::int64_t>(rows, 1, 1 << 15))));
}

// The gradients for grad_output = 1; undefined where not wanted. f32, or f64.
struct Computed {
  Tensor hidden;  // (..., features)
  Tensor weight;  // (classes, features)
};

// The sum or mean of the losses, and the gradients that `grads` has tensors for.
//   logits = h W^T, dh = dlogits W, dW = sum over chunks of dlogits^T h
// dlogits, an operand of the products, are of hidden's dtype.
Tensor run(const RowView& hidden, const Tensor& weight, const detail::Targets& targets,
           const CrossEntropyOptions& options, const Computed& grads) {
  const std::int64_t rows = hidden.rows, features = hidden.cols, classes = weight.size(0);
  const TensorOptions compute{weight.dtype() == DType::f64 ? DType::f64 : DType::f32, weight.device()};
  const std::int64_t chunk = rows_per_chunk(rows, classes, size_of(compute.dtype));
  const Tensor logits = empty({chunk, classes}, compute);
  const Tensor loss = empty({rows}, compute), lse = empty({chunk}, compute);
  const bool differentiates = grads.hidden.defined() || grads.weight.defined();
  const double scale = targets.weight.defined() ? gradient_scale(weight.dtype(), rows) : 1;
  Tensor dlogits = logits, row_weight = targets.weight;
  if (differentiates && is_half(weight.dtype())) {
    dlogits = empty({chunk, classes}, weight.options());
    if (scale != 1) row_weight = mul(row_weight, scale);
  }
  const GemmOperand<const void*> w{weight.data_ptr(), weight.dtype(), weight.stride(0), weight.stride(1)};
  if (rows == 0 && grads.weight.defined()) Tensor(grads.weight).zero_();
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t count = std::min(chunk, rows - begin);
    const GemmOperand<const void*> h{at(hidden.tensor, begin * hidden.stride), hidden.tensor.dtype(),
                                     hidden.stride, 1};
    const GemmOperand<void*> z{logits.data_ptr(), logits.dtype(), classes, 1};
    detail::gemm(compute.device,
                 {.M = count, .N = classes, .K = features, .a = h, .b = transposed(w), .c = z});
    kernels::CrossEntropyParams params{.rows = count,
                                       .cols = classes,
                                       .logits = {z.data, z.dtype, classes},
                                       .targets = at(targets.tensor, begin),
                                       .target_dtype = targets.tensor.dtype(),
                                       .ignore_index = options.ignore_index,
                                       .smoothing = options.label_smoothing,
                                       .lse = lse.data_ptr(),
                                       .loss = at(loss, begin)};
    ERGON_KERNEL(weight.device(), cross_entropy_forward, params);
    if (!differentiates) continue;
    params.weight = row_weight.defined() ? row_weight.data_ptr() : nullptr;
    params.dlogits = {dlogits.data_ptr(), dlogits.dtype(), classes};
    ERGON_KERNEL(weight.device(), cross_entropy_backward, params);
    const GemmOperand<const void*> dz{dlogits.data_ptr(), dlogits.dtype(), classes, 1};
    if (grads.hidden.defined()) {
      const GemmOperand<void*> dh{at(grads.hidden, begin * features), compute.dtype, features, 1};
      detail::gemm(compute.device,
                   {.M = count, .N = features, .K = classes, .a = dz, .b = w, .c = dh, .alpha = 1 / scale});
    }
    if (grads.weight.defined()) {
      const GemmOperand<void*> dw{grads.weight.data_ptr(), compute.dtype, features, 1};
      detail::gemm(compute.device, {.M = classes,
                                    .N = features,
                                    .K = count,
                                    .a = transposed(dz),
                                    .b = h,
                                    .c = dw,
                                    .alpha = 1 / scale,
                                    .beta = begin == 0 ? 0.0 : 1.0});
    }
  }
  return detail::total_of(loss, targets.weight);
}

// Nobody else sees the tensor or its storage.
bool is_sole_owner(const Tensor& tensor) {
  return tensor.impl().use_count() == 1 && tensor.impl()->storage.use_count() == 1;
}

// Hands out the gradients computed by the forward, scaled. On the CPU in place where nobody else sees them;
// the device's grad_output is not waited for.
struct Backward {
  Computed grads;
  DType hidden_dtype, weight_dtype;
  double applied = 1;  // the grad_output that `grads` are for

  autograd::Gradients operator()(const Tensor& grad_output, const autograd::NeedsGrad&) {
    return grad_output.device().is_cpu() ? on_cpu(grad_output) : on_device(grad_output);
  }

 private:
  autograd::Gradients on_device(const Tensor& grad_output) const {
    const auto scaled = [&](const Tensor& gradient, DType dtype) {
      return gradient.defined() ? mul(gradient, grad_output).to(dtype) : gradient;
    };
    return {scaled(grads.hidden, hidden_dtype), scaled(grads.weight, weight_dtype)};
  }

  autograd::Gradients on_cpu(const Tensor& grad_output) {
    const double wanted = grad_output.item<double>();
    const double factor = wanted / applied;
    const bool reversible = std::isfinite(wanted) && wanted != 0;  // else keep the gradients for another call
    const auto scaled = [&](Tensor& gradient, DType dtype) {
      if (!gradient.defined()) return gradient;
      if (factor == 1) return gradient.to(dtype);
      if (!reversible) return mul(gradient, factor).to(dtype);
      if (is_sole_owner(gradient)) {
        mul_(gradient, factor);
      } else {
        gradient = mul(gradient, factor);
      }
      return gradient.to(dtype);
    };
    autograd::Gradients result{scaled(grads.hidden, hidden_dtype), scaled(grads.weight, weight_dtype)};
    if (reversible) applied = wanted;
    return result;
  }
};

}  // namespace

Tensor linear_cross_entropy(const Tensor& hidden_in, const Tensor& weight_in, const Tensor& targets,
                            const CrossEntropyOptions& options) {
  OpScope scope("linear_cross_entropy", hidden_in, weight_in, targets);
  const auto [hidden, weight] = [&] {
    NoGradGuard no_grad;
    return autocast::cast("linear_cross_entropy", hidden_in, weight_in);
  }();
  check(hidden, weight, options);
  Shape shape = hidden.shape();
  shape.erase(shape.size() - 1);
  const DType dtype = hidden.dtype();
  const TensorOptions compute{dtype == DType::f64 ? DType::f64 : DType::f32, hidden.device()};
  const detail::Targets checked =
      detail::check_targets("linear_cross_entropy", targets, shape, weight.size(0), compute.dtype, options);
  const bool recording = grad_enabled();
  Computed grads;
  if (recording && hidden_in.requires_grad()) grads.hidden = empty(hidden.shape(), compute);
  if (recording && weight_in.requires_grad()) grads.weight = empty(weight.shape(), compute);
  const Tensor loss = run(rows_of(hidden), weight.detach(), checked, options, grads);
  return autograd::record("linear_cross_entropy", loss, {hidden_in, weight_in},
                          Backward{std::move(grads), hidden_in.dtype(), weight_in.dtype()});
}

}  // namespace ergon::ops
