#include "ops/attention.h"

#include <cmath>

#include "core/autograd.h"
#include "kernels/attention.h"
#include "ops/dispatch.h"

namespace ergon::ops {
namespace {

using kernels::AttentionOperand;
using kernels::AttentionParams;

AttentionOperand operand(const Tensor& t) {
  return {t.data_ptr(), t.strides()[0], t.strides()[1], t.strides()[2]};
}

Tensor with_unit_last_stride(const Tensor& t) {
  return t.strides()[3] == 1 || t.shape()[3] == 1 ? t : t.contiguous();
}

void check(const Tensor& q, const Tensor& k, const Tensor& v) {
  constexpr const char* kOp = "scaled_dot_product_attention";
  for (const Tensor* t : {&q, &k, &v}) {
    ERGON_CHECK(t->dim() == 4, "[{}] shape {}: expected (batch, seqlen, num_heads, head_dim)", kOp,
                t->shape());
    ERGON_CHECK(t->dtype() == q.dtype() && is_floating_point(q.dtype()),
                "[{}] q is {}, another operand {}: expected one floating dtype", kOp, name_of(q.dtype()),
                name_of(t->dtype()));
  }
  ERGON_CHECK(k.shape() == v.shape(), "[{}] k {} and v {} must have equal shapes", kOp, k.shape(), v.shape());
  ERGON_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3),
              "[{}] q {} and k {} must agree in batch and head_dim", kOp, q.shape(), k.shape());
  ERGON_CHECK(k.size(2) > 0 && q.size(2) % k.size(2) == 0,
              "[{}] q {} has {} heads: expected a multiple of the {} key/value heads of k {}", kOp, q.shape(),
              q.size(2), k.size(2), k.shape());
}

AttentionParams make_params(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                            const Tensor& lse, double scale, bool causal) {
  return {.dtype = q.dtype(),
          .batch = q.size(0),
          .seqlen_q = q.size(1),
          .seqlen_k = k.size(1),
          .num_heads = q.size(2),
          .num_heads_kv = k.size(2),
          .head_dim = q.size(3),
          .softmax_scale = scale,
          .causal = causal,
          .q = operand(q),
          .k = operand(k),
          .v = operand(v),
          .o = operand(o),
          .softmax_lse = lse.data_ptr()};
}

}  // namespace

Tensor scaled_dot_product_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                    const AttentionOptions& options) {
  OpScope scope("scaled_dot_product_attention", q_in, k_in, v_in);
  check(q_in, k_in, v_in);
  const Tensor q = with_unit_last_stride(q_in), k = with_unit_last_stride(k_in),
               v = with_unit_last_stride(v_in);
  const double scale = options.softmax_scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  const Tensor o = empty(q.shape(), q.options());
  const Tensor lse = empty({q.size(0), q.size(2), q.size(1)},
                           {q.dtype() == DType::f64 ? DType::f64 : DType::f32, q.device()});
  AttentionParams params = make_params(q, k, v, o, lse, scale, options.causal);
  const Tensor workspace =
      empty({ERGON_KERNEL(q.device(), attention_forward_workspace, params)}, {DType::u8, q.device()});
  params.workspace = workspace.data_ptr();
  ERGON_KERNEL(q.device(), attention_forward, params);

  using autograd::save;
  return autograd::record(
      "scaled_dot_product_attention", o, {q_in, k_in, v_in},
      [q = save(q), k = save(k), v = save(v), o = save(o), lse = save(lse), scale, causal = options.causal](
          const Tensor& grad_output, const auto&) {
        const Tensor dout = with_unit_last_stride(grad_output);
        const Tensor dq = empty(q.get().shape(), dout.options()), dk = empty(k.get().shape(), dout.options()),
                     dv = empty(v.get().shape(), dout.options());
        AttentionParams backward = make_params(q.get(), k.get(), v.get(), o.get(), lse.get(), scale, causal);
        backward.dout = operand(dout);
        backward.dq = operand(dq);
        backward.dk = operand(dk);
        backward.dv = operand(dv);
        const Tensor scratch = empty({ERGON_KERNEL(dout.device(), attention_backward_workspace, backward)},
                                     {DType::u8, dout.device()});
        backward.workspace = scratch.data_ptr();
        ERGON_KERNEL(dout.device(), attention_backward, backward);
        return autograd::Gradients{dq, dk, dv};
      });
}

}  // namespace ergon::ops
