#include "ops/attention.h"

#include <array>
#include <cmath>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/tensor_impl.h"
#include "kernels/attention.h"
#include "ops/attention_check.h"
#include "ops/dispatch.h"

namespace ergon::ops {
namespace {

using kernels::AttentionOperand;
using kernels::AttentionParams;

// (batch, seqlen, heads, head_dim), or of a packed batch (total, heads, head_dim).
AttentionOperand operand(const Tensor& t) {
  return {.data = t.data_ptr(),
          .batch_stride = t.dim() == 4 ? t.stride(0) : 0,
          .seqlen_stride = t.stride(-3),
          .head_stride = t.stride(-2)};
}

Tensor with_unit_last_stride(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

// The tensors that a call reads, whichever of them it has; q, k and v with a last stride of 1.
struct Inputs {
  Tensor q, k, v;
  Tensor bias = {}, alibi_slopes = {}, cu_seqlens_q = {}, cu_seqlens_k = {}, seqlens_k = {}, block_table = {};
};

const std::int32_t* index_data(const Tensor& t) { return t.defined() ? t.data<std::int32_t>() : nullptr; }

AttentionParams make_params(const Inputs& in, const AttentionOptions& options, std::int64_t batch,
                            std::int64_t seqlen_q, std::int64_t seqlen_k) {
  AttentionParams p{
      .dtype = in.q.dtype(),
      .batch = batch,
      .seqlen_q = seqlen_q,
      .seqlen_k = seqlen_k,
      .num_heads = in.q.size(-2),
      .num_heads_kv = in.k.size(-2),
      .head_dim = in.q.size(-1),
      .softmax_scale = options.softmax_scale.value_or(1 / std::sqrt(static_cast<double>(in.q.size(-1)))),
      .causal = options.causal,
      .window_left = options.window_left,
      .window_right = options.window_right,
      .softcap = options.softcap,
      .dropout_p = options.dropout_p,
      .cu_seqlens_q = index_data(in.cu_seqlens_q),
      .cu_seqlens_k = index_data(in.cu_seqlens_k),
      .seqlens_k = index_data(in.seqlens_k),
      .block_table = index_data(in.block_table),
      .q = operand(in.q),
      .k = operand(in.k),
      .v = operand(in.v),
      .deterministic = options.deterministic};
  if (in.bias.defined()) {
    const Tensor bias = in.bias.expand({batch, p.num_heads, seqlen_q, seqlen_k});
    p.bias = {bias.data_ptr(), bias.stride(0), bias.stride(1), bias.stride(2), bias.stride(3)};
  }
  if (in.alibi_slopes.defined()) p.alibi_slopes = in.alibi_slopes.data<float>();
  if (in.cu_seqlens_q.defined()) p.total_q = in.q.size(0), p.total_k = in.k.size(0);
  if (in.block_table.defined()) {
    p.block_table_stride = in.block_table.stride(0);
    p.page_size = in.k.size(1);
    p.pages = in.k.size(0);
  }
  if (options.dropout_p > 0) {
    Generator& generator = options.generator == nullptr ? default_generator() : *options.generator;
    p.dropout_stream = generator.reserve(batch * p.num_heads * seqlen_q * ((seqlen_k + 3) / 4 * 4));
  }
  return p;
}

// The way back. The pointers in `params` stay valid as long as what was saved.
class Backward {
 public:
  Backward(const AttentionParams& params, const Inputs& in, const Tensor& o, const Tensor& lse,
           const Tensor& lse_residual)
      : params_(params),
        q_(autograd::save(in.q)),
        k_(autograd::save(in.k)),
        v_(autograd::save(in.v)),
        others_{autograd::save(o), autograd::save(lse)} {
    for (const Tensor* t : {&lse_residual, &in.bias, &in.alibi_slopes, &in.cu_seqlens_q, &in.cu_seqlens_k})
      if (t->defined()) others_.push_back(autograd::save(*t));
  }

  autograd::Gradients operator()(const Tensor& grad_output, const autograd::NeedsGrad&) {
    for (const autograd::SavedTensor& other : others_) other.get();  // unchanged since?
    const Tensor dout = with_unit_last_stride(grad_output);
    const auto [dq, dk, dv] = like({q_.get(), k_.get(), v_.get()}, dout.options());
    AttentionParams params = params_;
    params.dout = operand(dout);
    params.dq = operand(dq);
    params.dk = operand(dk);
    params.dv = operand(dv);
    const Tensor workspace = empty({ERGON_KERNEL(dout.device(), attention_backward_workspace, params)},
                                   {DType::u8, dout.device()});
    params.workspace = workspace.data_ptr();
    ERGON_KERNEL(dout.device(), attention_backward, params);
    return {dq, dk, dv};
  }

 private:
  // Where q, k and v are pieces of one projection, so are their gradients: split() need not join them.
  static std::array<Tensor, 3> like(const std::array<Tensor, 3>& qkv, const TensorOptions& options) {
    const Tensor joined = ergon::detail::joined_in_place(qkv, -2);
    if (!joined.defined()) {
      return {empty(qkv[0].shape(), options), empty(qkv[1].shape(), options), empty(qkv[2].shape(), options)};
    }
    const std::vector<Tensor> pieces =
        split(empty(joined.shape(), options), {qkv[0].size(-2), qkv[1].size(-2), qkv[2].size(-2)}, -2);
    return {pieces[0], pieces[1], pieces[2]};
  }

  AttentionParams params_;
  autograd::SavedTensor q_, k_, v_;
  std::vector<autograd::SavedTensor> others_;
};

Tensor attend(const char* op, AttentionParams params, const Inputs& in, const Tensor& q, const Tensor& k,
              const Tensor& v, Tensor* softmax_lse) {
  const Tensor o = empty(in.q.shape(), in.q.options());
  const Tensor operands[] = {q, k, v};
  const bool recording = autograd::should_record(operands);
  Tensor lse, lse_residual;
  if (recording || softmax_lse != nullptr) {
    const Shape shape = in.cu_seqlens_q.defined() ? Shape{params.num_heads, params.total_q}
                                                  : Shape{params.batch, params.num_heads, params.seqlen_q};
    lse = empty(shape, {o.dtype() == DType::f64 ? DType::f64 : DType::f32, o.device()});
    params.softmax_lse = lse.data_ptr();
    if (recording && o.dtype() == DType::f32) {
      lse_residual = empty(shape, lse.options());
      params.softmax_lse_residual = lse_residual.data<float>();
    }
  }
  params.o = operand(o);
  const Tensor workspace =
      empty({ERGON_KERNEL(o.device(), attention_forward_workspace, params)}, {DType::u8, o.device()});
  params.workspace = workspace.data_ptr();
  ERGON_KERNEL(o.device(), attention_forward, params);
  if (softmax_lse != nullptr) *softmax_lse = lse;
  if (!recording) return o;
  return autograd::record(op, o, {q, k, v}, Backward(params, in, o, lse, lse_residual));
}

}  // namespace

Tensor scaled_dot_product_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                    const AttentionOptions& options_in) {
  constexpr const char* kOp = "scaled_dot_product_attention";
  OpScope scope(kOp, q_in, k_in, v_in, options_in.bias, options_in.alibi_slopes);
  AttentionOptions options = options_in;
  Tensor q, k, v;
  std::tie(q, k, v, options.bias) = std::tuple_cat(autocast::cast(kOp, q_in, k_in, v_in, options_in.bias));
  detail::check_attention_operands(kOp, q, k, v, 4);
  ERGON_CHECK(q.size(0) == k.size(0), "[{}] q {} and k {} must agree in batch", kOp, q.shape(), k.shape());
  detail::check_attention_options(kOp, options, q, q.size(0), q.size(1), k.size(1));
  const Inputs in{.q = with_unit_last_stride(q),
                  .k = with_unit_last_stride(k),
                  .v = with_unit_last_stride(v),
                  .bias = options.bias,
                  .alibi_slopes = options.alibi_slopes};
  return attend(kOp, make_params(in, options, q.size(0), q.size(1), k.size(1)), in, q, k, v,
                options.softmax_lse);
}

Tensor scaled_dot_product_attention_varlen(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                           const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                           std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
                                           const AttentionOptions& options) {
  constexpr const char* kOp = "scaled_dot_product_attention_varlen";
  OpScope scope(kOp, q_in, k_in, v_in, cu_seqlens_q, cu_seqlens_k, options.alibi_slopes);
  const auto [q, k, v] = autocast::cast(kOp, q_in, k_in, v_in);
  detail::check_attention_operands(kOp, q, k, v, 3);
  detail::check_cu_seqlens(kOp, 'q', cu_seqlens_q, q.size(0), max_seqlen_q);
  detail::check_cu_seqlens(kOp, 'k', cu_seqlens_k, k.size(0), max_seqlen_k);
  ERGON_CHECK(cu_seqlens_q.numel() == cu_seqlens_k.numel(),
              "[{}] cu_seqlens_q {} and cu_seqlens_k {} must have equal shapes", kOp, cu_seqlens_q.shape(),
              cu_seqlens_k.shape());
  ERGON_CHECK(!options.bias.defined(), "[{}] a bias is not supported for packed batches", kOp);
  const std::int64_t batch = cu_seqlens_q.numel() - 1;
  detail::check_attention_options(kOp, options, q, batch, max_seqlen_q, max_seqlen_k);
  const Inputs in{.q = with_unit_last_stride(q),
                  .k = with_unit_last_stride(k),
                  .v = with_unit_last_stride(v),
                  .alibi_slopes = options.alibi_slopes,
                  .cu_seqlens_q = cu_seqlens_q,
                  .cu_seqlens_k = cu_seqlens_k};
  return attend(kOp, make_params(in, options, batch, max_seqlen_q, max_seqlen_k), in, q, k, v,
                options.softmax_lse);
}

Tensor scaled_dot_product_attention_with_cache(const Tensor& q, const AttentionCache& cache,
                                               const AttentionOptions& options) {
  constexpr const char* kOp = "scaled_dot_product_attention_with_cache";
  OpScope scope(kOp, q, cache.k, cache.v, cache.seqlens_k, cache.block_table, options.bias,
                options.alibi_slopes);
  detail::check_attention_cache(kOp, q, cache);
  const bool paged = cache.block_table.defined();
  const std::int64_t capacity = paged ? cache.block_table.size(1) * cache.k.size(1) : cache.k.size(1);
  detail::check_attention_options(kOp, options, q, q.size(0), q.size(1), capacity);
  const Inputs in{.q = with_unit_last_stride(q),
                  .k = with_unit_last_stride(cache.k),
                  .v = with_unit_last_stride(cache.v),
                  .bias = options.bias,
                  .alibi_slopes = options.alibi_slopes,
                  .seqlens_k = cache.seqlens_k,
                  .block_table = cache.block_table};
  return attend(kOp, make_params(in, options, q.size(0), q.size(1), capacity), in, q, cache.k, cache.v,
                options.softmax_lse);
}

}  // namespace ergon::ops
