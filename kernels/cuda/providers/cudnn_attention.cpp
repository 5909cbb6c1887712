#include "kernels/cuda/providers/cudnn_attention.h"

#if __has_include(<cudnn.h>)
#include <cudnn.h>
#endif

#if defined(CUDNN_VERSION) && CUDNN_VERSION >= 91301  // knows OPERATION_SDPA_FWD
#include <limits>
#include <map>

#include "core/log.h"
#include "kernels/cuda/providers/cudnn_graph.h"

namespace ergon::kernels::cuda {
namespace {

using namespace cudnn;

enum class Pass : std::uint8_t { forward, backward };

// Of cuDNN 9.21: the scores go through a graph of their own on their way to the softmax.
constexpr std::size_t kSubgraphVersion = 92100;
constexpr auto kSubgraph = static_cast<cudnnBackendAttributeName_t>(2811),
               kSubgraphInput = static_cast<cudnnBackendAttributeName_t>(2812),
               kSubgraphOutput = static_cast<cudnnBackendAttributeName_t>(2813);
// Up to 9.15.0 the backward's kernels want numbers of keys that are multiples of 128.
constexpr std::size_t kBackwardVersion = 91501;

enum Uid : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kStats,
  kScale,
  kMinus,  // infinity
  kOne,
  kDout,
  kDq,
  kDk,
  kDv,
  kDelta,
  kSums
};

cudnnDataType_t type_of(const AttentionParams& p) {
  return p.dtype == DType::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

Tensor of_queries(Graph& graph, const AttentionParams& p, Uid uid, const AttentionOperand& operand) {
  return graph.memory(uid, type_of(p), {p.batch, p.num_heads, p.seqlen_q, p.head_dim},
                      {operand.batch_stride, operand.head_stride, operand.seqlen_stride, 1});
}

Tensor of_keys(Graph& graph, const AttentionParams& p, Uid uid, const AttentionOperand& operand) {
  return graph.memory(uid, type_of(p), {p.batch, p.num_heads_kv, p.seqlen_k, p.head_dim},
                      {operand.batch_stride, operand.head_stride, operand.seqlen_stride, 1});
}

// of_keys transposed: (batch, num_heads_kv, head_dim, seqlen_k)
Tensor of_keys_turned(Graph& graph, const AttentionParams& p, Uid uid, const AttentionOperand& operand) {
  return graph.memory(uid, type_of(p), {p.batch, p.num_heads_kv, p.head_dim, p.seqlen_k},
                      {operand.batch_stride, operand.head_stride, 1, operand.seqlen_stride});
}

Tensor of_rows(Graph& graph, const AttentionParams& p, Uid uid) {
  const Sizes sizes{p.batch, p.num_heads, p.seqlen_q, 1};
  return graph.memory(uid, CUDNN_DATA_FLOAT, sizes, contiguous(sizes));
}

Sizes sizes_of_scores(const AttentionParams& p) { return {p.batch, p.num_heads, p.seqlen_q, p.seqlen_k}; }

// One operation, with a graph of its own for the mask.
std::optional<Plan> forward_plan(const AttentionParams& p, cudnnHandle_t handle) {
  Graph graph, mask;
  Descriptor& attention = graph.operation(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
  attention.set(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, of_queries(graph, p, kQ, p.q))
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, of_keys(graph, p, kK, p.k))
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, of_keys(graph, p, kV, p.v))
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, of_queries(graph, p, kO, p.o))
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, graph.host(kScale));
  if (p.softmax_lse != nullptr)
    attention.set(CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, of_rows(graph, p, kStats));
  if (p.causal) {
    const Tensor scores = mask.registers(CUDNN_DATA_FLOAT, sizes_of_scores(p)),
                 masked = mask.causal(scores, mask.host(kMinus));
    attention.set(kSubgraph, mask.finalized(nullptr))
        .set(kSubgraphInput, CUDNN_TYPE_INT64, scores.uid)
        .set(kSubgraphOutput, CUDNN_TYPE_INT64, masked.uid);
  }
  attention.finalize();
  return plan_of(graph.finalized(handle), handle);
}

// The graph that cuDNN's engines for the backward know as a whole:
//   delta = sum_d dout o
//   p  = exp(scale q k^T - stats)              dv = p^T dout, summed over the heads of a group
//   ds = scale p (dout v^T - delta)            dk = ds^T q, likewise;  dq = ds k
// If dq is the last product itself, they keep all of ds in the workspace, and add up in fixed order; if fp32
// sums that are then rounded are, blocks add to those in any order.
std::optional<Plan> backward_plan(const AttentionParams& p, cudnnHandle_t handle) {
  Graph graph;
  const cudnnDataType_t type = type_of(p);
  const Sizes scores = sizes_of_scores(p);
  const Tensor q = of_queries(graph, p, kQ, p.q), k = of_keys_turned(graph, p, kK, p.k),
               v = of_keys_turned(graph, p, kV, p.v), o = of_queries(graph, p, kO, p.o),
               dout = of_queries(graph, p, kDout, p.dout), dq = of_queries(graph, p, kDq, p.dq),
               dk = of_keys(graph, p, kDk, p.dk), dv = of_keys(graph, p, kDv, p.dv),
               stats = of_rows(graph, p, kStats), delta = of_rows(graph, p, kDelta),
               scale = graph.host(kScale), one = graph.host(kOne);
  const auto product = [&](const Tensor& a, const Tensor& b) {
    const Tensor c = graph.registers(CUDNN_DATA_FLOAT, scores);
    graph.matmul(a, b, c);
    return c;
  };
  const auto product_of_group = [&](const Tensor& a, const Tensor& b, const Tensor& c) {
    if (p.num_heads == p.num_heads_kv) return graph.matmul(a, b, c);
    const Tensor of_each = graph.registers(type, {p.batch, p.num_heads, p.seqlen_k, p.head_dim});
    graph.matmul(a, b, of_each);
    graph.sum(of_each, c);
  };

  const Tensor sums = graph.registers(CUDNN_DATA_FLOAT, delta.sizes);
  graph.sum(graph.binary(CUDNN_POINTWISE_MUL, dout, o), sums);
  graph.pointwise(CUDNN_POINTWISE_MUL, sums, delta, &one);  // one: dropout's scale
  Tensor exponents =
      graph.binary(CUDNN_POINTWISE_SUB, graph.binary(CUDNN_POINTWISE_MUL, product(q, k), scale), stats);
  if (p.causal) exponents = graph.causal(exponents, graph.host(kMinus));
  const Tensor probabilities = graph.registers(CUDNN_DATA_FLOAT, scores);
  graph.pointwise(CUDNN_POINTWISE_EXP, exponents, probabilities);
  product_of_group(graph.transposed(probabilities, type), dout, dv);
  const Tensor centred = graph.binary(CUDNN_POINTWISE_SUB, product(dout, v), delta);
  const Tensor ds =
      graph.binary(CUDNN_POINTWISE_MUL, graph.binary(CUDNN_POINTWISE_MUL, centred, probabilities), scale);
  product_of_group(graph.transposed(ds, type), q, dk);
  const Tensor keys = graph.transposed(k, type);
  if (p.deterministic) {
    graph.matmul(ds, keys, dq);
  } else {
    const Tensor unrounded = graph.memory(kSums, CUDNN_DATA_FLOAT, dq.sizes, contiguous(dq.sizes));
    graph.matmul(ds, keys, unrounded);
    graph.pointwise(CUDNN_POINTWISE_IDENTITY, unrounded, dq);
  }
  return plan_of(graph.finalized(handle), handle);
}

// Making a plan takes long: one for each device and problem. Null: cuDNN has none.
const Plan* plan_for(Pass pass, const AttentionParams& p, cudnnHandle_t handle) {
  using Key = std::vector<std::int64_t>;
  // Never destroyed: at the end of the process the library may be gone.
  static auto& plans = *new std::map<std::pair<cudnnHandle_t, Key>, std::optional<Plan>>;
  Key key = {static_cast<std::int64_t>(pass),
             static_cast<std::int64_t>(p.dtype),
             p.batch,
             p.seqlen_q,
             p.seqlen_k,
             p.num_heads,
             p.num_heads_kv,
             p.head_dim,
             p.causal,
             p.softmax_lse != nullptr,
             p.deterministic};
  for (const AttentionOperand* operand : {&p.q, &p.k, &p.v, &p.o, &p.dout, &p.dq, &p.dk, &p.dv})
    key.insert(key.end(), {operand->batch_stride, operand->seqlen_stride, operand->head_stride});
  const auto [known, is_new] = plans.try_emplace({handle, std::move(key)});
  if (is_new) {
    known->second = pass == Pass::forward ? forward_plan(p, handle) : backward_plan(p, handle);
    if (!known->second) SPDLOG_LOGGER_DEBUG(&log(), "[attention] cuDNN has no kernel: computed by Ergon");
  }
  return known->second ? &*known->second : nullptr;
}

bool supported(Pass pass, const AttentionParams& p) {
  if (p.batch == 0 || p.seqlen_q == 0 || p.seqlen_k == 0 || p.num_heads == 0 || p.head_dim == 0
      || p.head_dim > 128 || (p.causal && p.seqlen_q != p.seqlen_k) || p.window_left >= 0
      || (p.window_right >= 0 && !p.causal) || p.softcap > 0 || p.bias.data != nullptr
      || p.alibi_slopes != nullptr || p.dropout_p > 0 || p.cu_seqlens_q != nullptr || p.seqlens_k != nullptr)
    return false;
  if (pass == Pass::forward) return version() >= kSubgraphVersion || !p.causal;
  return version() >= kBackwardVersion && p.seqlen_q * p.seqlen_k > 1;
}

// What the backward keeps in the workspace behind what the plan asks for; bytes.
struct Scratch {
  std::int64_t delta, sums, end;

  Scratch(const AttentionParams& p, const Plan& plan) {
    constexpr std::int64_t kAlignment = 256;
    const auto rounded = [](std::int64_t bytes) {
      return (bytes + kAlignment - 1) / kAlignment * kAlignment;
    };
    const std::int64_t rows = p.batch * p.num_heads * p.seqlen_q * std::int64_t{sizeof(float)};
    delta = rounded(plan.workspace);
    sums = rounded(delta + rows);
    end = p.deterministic ? sums : sums + rows * p.head_dim;
  }
};

}  // namespace

bool cudnn_attention_forward(const AttentionParams& p) {
  if (!supported(Pass::forward, p)) return false;
  const CudnnSession session("attention");
  const Plan* const plan = plan_for(Pass::forward, p, session.handle());
  if (plan == nullptr) return false;
  float scale = static_cast<float>(p.softmax_scale), minus = -std::numeric_limits<float>::infinity();
  Pack pack;
  pack.add(kQ, p.q.data).add(kK, p.k.data).add(kV, p.v.data).add(kO, p.o.data).add(kScale, &scale);
  if (p.softmax_lse != nullptr) pack.add(kStats, p.softmax_lse);
  if (p.causal) pack.add(kMinus, &minus);
  pack.execute(*plan, p.workspace, session.handle());
  return true;
}

bool cudnn_attention_backward(const AttentionParams& p) {
  if (!supported(Pass::backward, p)) return false;
  const CudnnSession session("attention");
  const Plan* const plan = plan_for(Pass::backward, p, session.handle());
  if (plan == nullptr) return false;
  const Scratch scratch(p, *plan);
  char* const workspace = static_cast<char*>(p.workspace);
  float scale = static_cast<float>(p.softmax_scale), one = 1, minus = -std::numeric_limits<float>::infinity();
  Pack pack;
  pack.add(kQ, p.q.data).add(kK, p.k.data).add(kV, p.v.data).add(kO, p.o.data).add(kStats, p.softmax_lse);
  pack.add(kDout, p.dout.data).add(kDq, p.dq.data).add(kDk, p.dk.data).add(kDv, p.dv.data);
  pack.add(kScale, &scale).add(kOne, &one).add(kDelta, workspace + scratch.delta);
  if (p.causal) pack.add(kMinus, &minus);
  if (!p.deterministic) pack.add(kSums, workspace + scratch.sums);
  pack.execute(*plan, p.workspace, session.handle());
  return true;
}

std::int64_t cudnn_attention_forward_workspace(const AttentionParams& p) {
  if (!supported(Pass::forward, p)) return 0;
  const CudnnSession session("attention");
  const Plan* const plan = plan_for(Pass::forward, p, session.handle());
  return plan == nullptr ? 0 : plan->workspace;
}

std::int64_t cudnn_attention_backward_workspace(const AttentionParams& p) {
  if (!supported(Pass::backward, p)) return 0;
  const CudnnSession session("attention");
  const Plan* const plan = plan_for(Pass::backward, p, session.handle());
  return plan == nullptr ? 0 : Scratch(p, *plan).end;
}

}  // namespace ergon::kernels::cuda

#else

#include "core/error.h"

namespace ergon::kernels::cuda {
namespace {

[[noreturn]] void fail() {
  ERGON_FAIL(
      "[attention] cudnn: Ergon was built without cudnn.h of 9.13.1 or newer; install it and build again");
}

}  // namespace

bool cudnn_attention_forward(const AttentionParams&) { fail(); }
bool cudnn_attention_backward(const AttentionParams&) { fail(); }
std::int64_t cudnn_attention_forward_workspace(const AttentionParams&) { fail(); }
std::int64_t cudnn_attention_backward_workspace(const AttentionParams&) { fail(); }

}  // namespace ergon::kernels::cuda

#endif
