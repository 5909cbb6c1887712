#include "ops/attention_check.h"

#include <span>

#include "core/autograd.h"

namespace ergon::ops::detail {
namespace {

// A dense tensor of i32 with `dims` dimensions, on q's device as OpScope has seen.
void check_index_tensor(const char* op, const std::string& name, const Tensor& tensor, int dims,
                        const char* shape) {
  ERGON_CHECK(tensor.defined(), "[{}] {} is undefined: expected {} i32", op, name, shape);
  ERGON_CHECK(tensor.dim() == dims && tensor.dtype() == DType::i32 && tensor.is_contiguous(),
              "[{}] {} {} {}: expected a contiguous {} i32", op, name, tensor.shape(),
              name_of(tensor.dtype()), shape);
}

// The elements, where they can be read without waiting for a device.
std::span<const std::int32_t> values_on_cpu(const Tensor& tensor) {
  if (!tensor.device().is_cpu()) return {};
  return {tensor.data<std::int32_t>(), static_cast<std::size_t>(tensor.numel())};
}

void check_bias(const char* op, const Tensor& bias, const Tensor& q, const Shape& scores) {
  ERGON_CHECK(bias.dtype() == q.dtype(), "[{}] bias is {}, q {}: expected one dtype", op,
              name_of(bias.dtype()), name_of(q.dtype()));
  ERGON_CHECK(!(grad_enabled() && bias.requires_grad()),
              "[{}] bias requires a gradient, which is not supported: pass bias.detach()", op);
  bool fits = bias.dim() <= 4;
  for (int d = 1; fits && d <= bias.dim(); ++d) fits = bias.size(-d) == 1 || bias.size(-d) == scores[4 - d];
  ERGON_CHECK(fits, "[{}] bias {} does not broadcast to (batch, num_heads, seqlen_q, seqlen_k) = {}", op,
              bias.shape(), scores);
}

}  // namespace

void check_attention_operands(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, int dims) {
  const char* shape = dims == 4 ? "(batch, seqlen, num_heads, head_dim)" : "(total, num_heads, head_dim)";
  for (const Tensor* t : {&q, &k, &v}) {
    ERGON_CHECK(t->dim() == dims, "[{}] shape {}: expected {}", op, t->shape(), shape);
    ERGON_CHECK(t->dtype() == q.dtype() && is_floating_point(q.dtype()),
                "[{}] q is {}, another operand {}: expected one floating dtype", op, name_of(q.dtype()),
                name_of(t->dtype()));
  }
  ERGON_CHECK(k.shape() == v.shape(), "[{}] k {} and v {} must have equal shapes", op, k.shape(), v.shape());
  ERGON_CHECK(k.size(-2) > 0 && q.size(-2) % k.size(-2) == 0,
              "[{}] q {} has {} heads: expected a multiple of the {} key/value heads of k {}", op, q.shape(),
              q.size(-2), k.size(-2), k.shape());
  ERGON_CHECK(q.size(-1) == k.size(-1), "[{}] q {} and k {} must agree in head_dim", op, q.shape(),
              k.shape());
}

void check_attention_options(const char* op, const AttentionOptions& options, const Tensor& q,
                             std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k) {
  ERGON_CHECK(options.dropout_p >= 0 && options.dropout_p < 1,
              "[{}] dropout_p {}: expected a probability in [0, 1)", op, options.dropout_p);
  ERGON_CHECK(options.softcap >= 0, "[{}] softcap {}: expected 0 (none) or a positive number", op,
              options.softcap);
  const std::int64_t num_heads = q.size(-2);
  if (options.bias.defined()) check_bias(op, options.bias, q, {batch, num_heads, seqlen_q, seqlen_k});
  if (const Tensor& slopes = options.alibi_slopes; slopes.defined()) {
    ERGON_CHECK(slopes.shape() == Shape{num_heads} && slopes.dtype() == DType::f32 && slopes.is_contiguous(),
                "[{}] alibi_slopes {} {}: expected a contiguous ({},) f32, one for each head of q", op,
                slopes.shape(), name_of(slopes.dtype()), num_heads);
    ERGON_CHECK(!(grad_enabled() && slopes.requires_grad()),
                "[{}] alibi_slopes require a gradient, which is not supported: pass alibi_slopes.detach()",
                op);
  }
}

void check_cu_seqlens(const char* op, char side, const Tensor& cu_seqlens, std::int64_t rows,
                      std::int64_t max_seqlen) {
  const std::string name = fmt::format("cu_seqlens_{}", side);
  check_index_tensor(op, name, cu_seqlens, 1, "(batch + 1)");
  ERGON_CHECK(cu_seqlens.numel() > 0, "[{}] {} {}: expected at least one element", op, name,
              cu_seqlens.shape());
  ERGON_CHECK(max_seqlen >= 0, "[{}] max_seqlen_{} {}: expected 0 or more", op, side, max_seqlen);
  const std::span<const std::int32_t> values = values_on_cpu(cu_seqlens);
  if (values.empty()) return;
  ERGON_CHECK(values.front() == 0 && values.back() == rows,
              "[{}] {} goes from {} to {}: expected from 0 to the {} rows of {}", op, name, values.front(),
              values.back(), rows, side);
  for (std::size_t b = 0; b + 1 < values.size(); ++b) {
    ERGON_CHECK(values[b] <= values[b + 1], "[{}] {}[{}] = {} follows {}: expected it not to fall", op, name,
                b + 1, values[b + 1], values[b]);
    ERGON_CHECK(values[b + 1] - values[b] <= max_seqlen,
                "[{}] item {} of {} has {} rows: expected at most max_seqlen_{} = {}", op, b, name,
                values[b + 1] - values[b], side, max_seqlen);
  }
}

void check_attention_cache(const char* op, const Tensor& q, const AttentionCache& cache) {
  check_attention_operands(op, q, cache.k, cache.v, 4);
  const Tensor operands[] = {q, cache.k, cache.v};
  ERGON_CHECK(!autograd::should_record(operands),
              "[{}] an operand requires a gradient, which a cache does not support: use NoGradGuard", op);
  const std::int64_t batch = q.size(0);
  const Shape& shape = cache.k.shape();
  const Tensor& table = cache.block_table;
  check_index_tensor(op, "seqlens_k", cache.seqlens_k, 1, "(batch)");
  ERGON_CHECK(cache.seqlens_k.numel() == batch,
              "[{}] seqlens_k {}: expected one for each of the {} items of q", op, cache.seqlens_k.shape(),
              batch);
  if (table.defined()) {
    check_index_tensor(op, "block_table", table, 2, "(batch, pages of an item)");
    ERGON_CHECK(table.size(0) == batch, "[{}] block_table {}: expected a row for each of the {} items of q",
                op, table.shape(), batch);
    ERGON_CHECK(shape[0] > 0 && shape[1] > 0, "[{}] paged k {}: expected pages of at least one key", op,
                shape);
  } else {
    ERGON_CHECK(shape[0] == batch, "[{}] q {} and k {} must agree in batch", op, q.shape(), shape);
  }
  const std::int64_t capacity = table.defined() ? table.size(1) * shape[1] : shape[1];
  const std::span<const std::int32_t> seqlens = values_on_cpu(cache.seqlens_k);
  for (std::size_t b = 0; b < seqlens.size(); ++b) {
    ERGON_CHECK(seqlens[b] >= 0 && seqlens[b] <= capacity,
                "[{}] seqlens_k[{}] = {}: expected 0 to {}, what the cache holds of an item", op, b,
                seqlens[b], capacity);
    if (!table.defined()) continue;
    const std::span<const std::int32_t> pages =
        values_on_cpu(table).subspan(b * static_cast<std::size_t>(table.size(1)));
    for (std::int64_t i = 0; i * shape[1] < seqlens[b]; ++i) {
      const std::int32_t page = pages[static_cast<std::size_t>(i)];
      ERGON_CHECK(page >= 0 && page < shape[0], "[{}] block_table[{}, {}] = {}: expected one of the {} pages",
                  op, b, i, page, shape[0]);
    }
  }
}

}  // namespace ergon::ops::detail
