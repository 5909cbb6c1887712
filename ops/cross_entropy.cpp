#include "ops/cross_entropy.h"

#include "core/autograd.h"
#include "core/half.h"
#include "ops/dispatch.h"
#include "ops/row_view.h"

namespace ergon::ops {
namespace {

// Throws if a target on the CPU is neither a class nor ignored.
void check_range(const char* op, const Tensor& targets, std::int64_t classes, std::int64_t ignore_index) {
  const std::int64_t rows = targets.numel();
  dispatch_index(targets.dtype(), op, [&](auto tag) {
    const auto* values = targets.data<typename decltype(tag)::type>();
    const auto wrong = [&](std::int64_t value) {
      return value != ignore_index && (value < 0 || value >= classes);
    };
    std::int64_t outside = 0;
    for (std::int64_t r = 0; r < rows; ++r) outside += wrong(values[r]);
    for (std::int64_t r = 0; outside > 0 && r < rows; ++r) {
      ERGON_CHECK(!wrong(values[r]),
                  "[{}] target {} at position {} of {}: expected 0 to {} ({} classes) or ignore_index {}", op,
                  values[r], r, rows, classes - 1, classes, ignore_index);
    }
  });
}

}  // namespace

namespace detail {

Targets check_targets(const char* op, const Tensor& targets, const Shape& shape, std::int64_t classes,
                      DType loss_dtype, const CrossEntropyOptions& options) {
  ERGON_CHECK(targets.shape() == shape, "[{}] targets {}: expected {}, one for each position", op,
              targets.shape(), shape);
  ERGON_CHECK(targets.dtype() == DType::i32 || targets.dtype() == DType::i64,
              "[{}] targets are {}: expected i32 or i64", op, name_of(targets.dtype()));
  ERGON_CHECK(options.label_smoothing >= 0 && options.label_smoothing < 1,
              "[{}] label_smoothing {}: expected a number in [0, 1)", op, options.label_smoothing);
  const Tensor dense = targets.contiguous();
  if (dense.device().is_cpu()) check_range(op, dense, classes, options.ignore_index);
  const Tensor weight = empty({}, {loss_dtype, dense.device()});
  ERGON_KERNEL(dense.device(), target_weight,
               {.rows = dense.numel(),
                .cols = classes,
                .targets = dense.data_ptr(),
                .target_dtype = dense.dtype(),
                .ignore_index = options.ignore_index,
                .dtype = loss_dtype,
                .weight = weight.data_ptr()});
  return {dense, options.reduction == Reduction::mean ? weight : Tensor()};
}

Tensor total_of(const Tensor& loss, const Tensor& weight) {
  const Tensor total = empty({}, loss.options());
  ERGON_KERNEL(loss.device(), total_loss,
               {.rows = loss.numel(),
                .dtype = loss.dtype(),
                .loss = loss.data_ptr(),
                .weight = weight.defined() ? weight.data_ptr() : nullptr,
                .total = total.data_ptr()});
  return total;
}

}  // namespace detail

Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyOptions& options) {
  OpScope scope("cross_entropy", logits, targets);
  check_rows("cross_entropy", "logits", logits);
  Shape shape = logits.shape();
  shape.erase(shape.size() - 1);
  const TensorOptions statistics{logits.dtype() == DType::f64 ? DType::f64 : DType::f32, logits.device()};
  const auto [target, weight] =
      detail::check_targets("cross_entropy", targets, shape, logits.size(-1), statistics.dtype, options);
  const RowView rows = rows_of(logits);
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
  ERGON_KERNEL(logits.device(), cross_entropy_forward, params);
  const Tensor output = options.reduction == Reduction::none ? loss : detail::total_of(loss, weight);

  using autograd::save;
  params.dloss_stride = options.reduction == Reduction::none ? 1 : 0;
  return autograd::record(
      "cross_entropy", output, {logits},
      [params, logits = save(rows.tensor), target = save(target), lse = save(lse), weight = save(weight)](
          const Tensor& grad_output, const autograd::NeedsGrad&) {
        const Tensor x = logits.get(), t = target.get(), saved_lse = lse.get(), w = weight.get();
        const Tensor dloss = grad_output.contiguous(), dlogits = empty(x.shape(), x.options());
        kernels::CrossEntropyParams p = params;
        p.logits.data = x.data_ptr();
        p.targets = t.data_ptr();
        p.lse = saved_lse.data_ptr();
        p.weight = w.defined() ? w.data_ptr() : nullptr;
        p.loss = nullptr;
        p.dloss = dloss.data_ptr();
        p.dlogits = {dlogits.data_ptr(), dlogits.dtype(), p.cols};
        ERGON_KERNEL(x.device(), cross_entropy_backward, p);
        return autograd::Gradients{dlogits};
      });
}

}  // namespace ergon::ops
