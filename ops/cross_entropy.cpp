#include "ops/cross_entropy.h"

#include "core/autograd.h"
#include "core/half.h"
#include "ops/row_view.h"

namespace ergon::ops {
namespace detail {

Targets check_targets(const char* op, const Tensor& targets, const Shape& shape, std::int64_t classes,
                      const CrossEntropyOptions& options) {
  ERGON_CHECK(targets.shape() == shape, "[{}] targets {}: expected {}, one for each position", op,
              targets.shape(), shape);
  ERGON_CHECK(targets.dtype() == DType::i32 || targets.dtype() == DType::i64,
              "[{}] targets are {}: expected i32 or i64", op, name_of(targets.dtype()));
  ERGON_CHECK(options.label_smoothing >= 0 && options.label_smoothing < 1,
              "[{}] label_smoothing {}: expected a number in [0, 1)", op, options.label_smoothing);
  Targets result{targets.contiguous(), 0};
  const std::int64_t rows = targets.numel();
  dispatch_index(targets.dtype(), op, [&](auto tag) {
    const auto* values = static_cast<const typename decltype(tag)::type*>(result.tensor.data_ptr());
    std::int64_t outside = 0, ignored = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t value = values[r];
      const bool ignore = value == options.ignore_index;
      ignored += ignore;
      outside += !ignore && (value < 0 || value >= classes);
    }
    result.counted = rows - ignored;
    for (std::int64_t r = 0; outside > 0 && r < rows; ++r) {
      const std::int64_t value = values[r];
      ERGON_CHECK(value == options.ignore_index || (value >= 0 && value < classes),
                  "[{}] target {} at position {} of {}: expected 0 to {} ({} classes) or ignore_index {}", op,
                  value, r, rows, classes - 1, classes, options.ignore_index);
    }
  });
  return result;
}

Tensor reduce_losses(const Tensor& loss, std::int64_t counted, Reduction reduction) {
  return dispatch_floating(loss.dtype(), "cross_entropy", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* losses = loss.data<T>();
    double sum = 0;
    for (std::int64_t r = 0; r < loss.numel(); ++r) sum += static_cast<double>(losses[r]);
    const Tensor result = empty({}, loss.options());
    *result.data<T>() =
        static_cast<T>(reduction == Reduction::mean ? sum / static_cast<double>(counted) : sum);
    return result;
  });
}

}  // namespace detail

Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyOptions& options) {
  check_rows("cross_entropy", "logits", logits);
  Shape shape = logits.shape();
  shape.erase(shape.size() - 1);
  const auto [target, counted] =
      detail::check_targets("cross_entropy", targets, shape, logits.size(-1), options);
  const RowView rows = rows_of(logits);
  const TensorOptions statistics{logits.dtype() == DType::f64 ? DType::f64 : DType::f32, logits.device()};
  const Tensor loss = empty(shape, statistics);
  const bool recording = autograd::should_record(std::span(&logits, 1));
  const Tensor lse = recording ? empty({rows.rows}, statistics) : Tensor();
  kernels::CrossEntropyParams params{.rows = rows.rows,
                                     .cols = rows.cols,
                                     .logits = rows.matrix(),
                                     .targets = target.data_ptr(),
                                     .target_dtype = target.dtype(),
                                     .ignore_index = options.ignore_index,
                                     .smoothing = options.label_smoothing,
                                     .lse = recording ? lse.data_ptr() : nullptr,
                                     .loss = loss.data_ptr()};
  kernels::cpu::cross_entropy_forward(params);
  const Tensor output =
      options.reduction == Reduction::none ? loss : detail::reduce_losses(loss, counted, options.reduction);

  using autograd::save;
  params.scale = options.reduction == Reduction::mean ? 1 / static_cast<double>(counted) : 1;
  params.dloss_stride = options.reduction == Reduction::none ? 1 : 0;
  return autograd::record("cross_entropy", output, {logits},
                          [params, logits = save(rows.tensor), target = save(target), lse = save(lse)](
                              const Tensor& grad_output, const autograd::NeedsGrad&) {
                            const Tensor x = logits.get(), t = target.get(), saved_lse = lse.get();
                            const Tensor dloss = grad_output.contiguous(),
                                         dlogits = empty(x.shape(), x.options());
                            kernels::CrossEntropyParams p = params;
                            p.logits.data = x.data_ptr();
                            p.targets = t.data_ptr();
                            p.lse = saved_lse.data_ptr();
                            p.loss = nullptr;
                            p.dloss = dloss.data_ptr();
                            p.dlogits = {dlogits.data_ptr(), dlogits.dtype(), p.cols};
                            kernels::cpu::cross_entropy_backward(p);
                            return autograd::Gradients{dlogits};
                          });
}

}  // namespace ergon::ops
