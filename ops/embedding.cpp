#include "ops/embedding.h"

#include "core/autograd.h"
#include "core/half.h"
#include "kernels/embedding.h"
#include "ops/dispatch.h"
#include "ops/row_view.h"

namespace ergon::ops {
namespace {

// On the CPU; CUDA's kernels check for themselves.
void check_indices(const Tensor& indices, std::int64_t vocab) {  // contiguous
  dispatch_index(indices.dtype(), "embedding", [&](auto tag) {
    const auto* values = indices.data<typename decltype(tag)::type>();
    const std::int64_t count = indices.numel();
    std::int64_t outside = 0;
    for (std::int64_t i = 0; i < count; ++i) outside += values[i] < 0 || values[i] >= vocab;
    for (std::int64_t i = 0; outside > 0 && i < count; ++i) {
      ERGON_CHECK(values[i] >= 0 && values[i] < vocab,
                  "[embedding] index {} at position {} of {}: expected 0 to {}", values[i], i, count,
                  vocab - 1);
    }
  });
}

}  // namespace

Tensor embedding(const Tensor& weight, const Tensor& indices) {
  OpScope scope("embedding", weight, indices);
  check_rows("embedding", "weight", weight);
  ERGON_CHECK(weight.dim() == 2, "[embedding] weight {}: expected (vocab, features)", weight.shape());
  ERGON_CHECK(indices.dtype() == DType::i32 || indices.dtype() == DType::i64,
              "[embedding] indices are {}: expected i32 or i64", name_of(indices.dtype()));
  const Tensor index = indices.contiguous();
  if (index.device().is_cpu()) check_indices(index, weight.size(0));
  const RowView table = rows_of(weight);
  Shape shape = indices.shape();
  shape.push_back(table.cols);
  const Tensor y = empty(shape, weight.options());
  const kernels::EmbeddingParams params{.vocab = table.rows,
                                        .cols = table.cols,
                                        .count = index.numel(),
                                        .indices = index.data_ptr(),
                                        .index_dtype = index.dtype()};
  ERGON_KERNEL(y.device(), embedding_forward, params, table.matrix(), {y.data_ptr(), y.dtype(), table.cols});
  return autograd::record(
      "embedding", y, {weight},
      [params, index = autograd::save(index)](const Tensor& grad_output, const autograd::NeedsGrad&) {
        const Tensor saved = index.get();
        const RowView dout = rows_of(grad_output);
        const Tensor grad_weight = empty({params.vocab, params.cols}, grad_output.options());
        const Tensor workspace = empty({kernels::embedding_backward_workspace(params.vocab, params.count)},
                                       {DType::i64, grad_output.device()});
        kernels::EmbeddingParams p = params;
        p.indices = saved.data_ptr();
        ERGON_KERNEL(grad_output.device(), embedding_backward, p, dout.matrix(),
                     {grad_weight.data_ptr(), grad_weight.dtype(), p.cols},
                     static_cast<std::int64_t*>(workspace.data_ptr()));
        return autograd::Gradients{grad_weight};
      });
}

}  // namespace ergon::ops
