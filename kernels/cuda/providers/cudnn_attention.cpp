// cuDNN's backend API (docs.nvidia.com/deeplearning/cudnn): descriptors of tensors and of one operation make
// a graph, of which its heuristics make an execution plan.

#include "kernels/cuda/providers/cudnn_attention.h"

#if __has_include(<cudnn.h>)
#include <cudnn.h>
#endif

#if defined(CUDNN_VERSION) && CUDNN_VERSION >= 91301  // knows OPERATION_SDPA_FWD
#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/log.h"
#include "kernels/cuda/providers/cudnn_session.h"

namespace ergon::kernels::cuda {
namespace {

// Of cuDNN 9.21: the scores go through a graph of their own on their way to the softmax.
constexpr std::size_t kSubgraphVersion = 92100;
constexpr auto kSubgraph = static_cast<cudnnBackendAttributeName_t>(2811),
               kSubgraphInput = static_cast<cudnnBackendAttributeName_t>(2812),
               kSubgraphOutput = static_cast<cudnnBackendAttributeName_t>(2813);

struct Api {
  decltype(&cudnnGetVersion) version;
  decltype(&cudnnBackendCreateDescriptor) create;
  decltype(&cudnnBackendDestroyDescriptor) destroy;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendSetAttribute) set;
  decltype(&cudnnBackendGetAttribute) get;
  decltype(&cudnnBackendExecute) execute;

  Api() {
    const Library& library = cudnn_library();
    library.find("cudnnGetVersion", version);
    library.find("cudnnBackendCreateDescriptor", create);
    library.find("cudnnBackendDestroyDescriptor", destroy);
    library.find("cudnnBackendFinalize", finalize);
    library.find("cudnnBackendSetAttribute", set);
    library.find("cudnnBackendGetAttribute", get);
    library.find("cudnnBackendExecute", execute);
    ERGON_CHECK(version() >= 91301, "[attention] cudnn {}: expected 91301 (9.13.1) or newer", version());
  }
};

const Api& api() {
  static const Api functions;
  return functions;
}

void check(cudnnStatus_t status, const char* call) { check_cudnn(status, "attention", call); }

class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    check(api().create(type, &descriptor_), "cudnnBackendCreateDescriptor");
  }
  ~Descriptor() {
    if (descriptor_ != nullptr) api().destroy(descriptor_);
  }
  Descriptor(Descriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }

  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
                  const void* values) {
    check(api().set(descriptor_, name, type, count, values), "cudnnBackendSetAttribute");
    return *this;
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    return set(name, type, 1, &value);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, std::span<const std::int64_t> values) {
    return set(name, CUDNN_TYPE_INT64, std::ssize(values), values.data());
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, value.descriptor_);
  }
  Descriptor& finalize() {
    check(api().finalize(descriptor_), "cudnnBackendFinalize");
    return *this;
  }
  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// Names of a graph's tensors.
enum Uid : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kStats,
  kScale,
  kScores,
  kRow,
  kColumn,
  kSees,
  kMinus,
  kMasked
};
enum class Where { memory, host, nowhere };  // nowhere: only in registers

using Sizes = std::array<std::int64_t, 4>;  // (batch, heads, rows, columns)

Descriptor tensor(Uid uid, cudnnDataType_t type, const Sizes& sizes, const Sizes& strides, Where where) {
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, static_cast<std::int64_t>(uid))
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, sizes)
      .set(CUDNN_ATTR_TENSOR_STRIDES, strides)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, std::int64_t{where == Where::memory ? 16 : 4})
      .set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, where == Where::host)
      .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, where == Where::nowhere)
      .finalize();
  return d;
}

Descriptor graph_of(std::span<const cudnnBackendDescriptor_t> operations, cudnnHandle_t handle) {
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (handle != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(operations),
            operations.data());
  graph.finalize();
  return graph;
}

struct Pointwise {
  Descriptor mode, operation;

  Pointwise(cudnnPointwiseMode_t what, cudnnDataType_t precision, const Descriptor& x, const Descriptor& y,
            const Descriptor* b = nullptr, const Descriptor* t = nullptr, std::int64_t axis = -1)
      : mode(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) {
    mode.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, what)
        .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, precision);
    if (axis >= 0) mode.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
    mode.finalize();
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    if (b != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
    if (t != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *t);
    operation.finalize();
  }
};

// scores = row >= column ? scores : -infinity
class CausalMask {
 public:
  explicit CausalMask(const Sizes& sizes)
      : strides_{sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1},
        scores_(tensor(kScores, CUDNN_DATA_FLOAT, sizes, strides_, Where::nowhere)),
        row_(tensor(kRow, CUDNN_DATA_INT32, sizes, strides_, Where::nowhere)),
        column_(tensor(kColumn, CUDNN_DATA_INT32, sizes, strides_, Where::nowhere)),
        sees_(tensor(kSees, CUDNN_DATA_BOOLEAN, sizes, strides_, Where::nowhere)),
        minus_(tensor(kMinus, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, Where::host)),
        masked_(tensor(kMasked, CUDNN_DATA_FLOAT, sizes, strides_, Where::nowhere)),
        operations_{
            Pointwise(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, scores_, row_, nullptr, nullptr, 2),
            Pointwise(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, scores_, column_, nullptr, nullptr, 3),
            Pointwise(CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, row_, sees_, &column_),
            Pointwise(CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, scores_, masked_, &minus_, &sees_)},
        graph_(graph_of(std::array{operations_[0].operation.get(), operations_[1].operation.get(),
                                   operations_[2].operation.get(), operations_[3].operation.get()},
                        nullptr)) {}

  void add_to(Descriptor& attention) const {
    attention.set(kSubgraph, graph_)
        .set(kSubgraphInput, CUDNN_TYPE_INT64, std::int64_t{kScores})
        .set(kSubgraphOutput, CUDNN_TYPE_INT64, std::int64_t{kMasked});
  }

 private:
  Sizes strides_;
  Descriptor scores_, row_, column_, sees_, minus_, masked_;
  std::array<Pointwise, 4> operations_;
  Descriptor graph_;
};

// An execution plan, and how large its workspace is.
struct Plan {
  Descriptor config, descriptor;
  std::int64_t workspace;
};

// The first of the heuristics' choices that makes a plan.
std::optional<Plan> plan_of(const Descriptor& graph, cudnnHandle_t handle) {
  Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  if (api().finalize(heuristics.get()) != CUDNN_STATUS_SUCCESS) return std::nullopt;
  std::vector<Descriptor> configs;
  std::vector<cudnnBackendDescriptor_t> pointers;
  for (int i = 0; i < 8; ++i)
    pointers.push_back(configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  std::int64_t found = 0;
  check(api().get(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                  std::ssize(pointers), &found, pointers.data()),
        "cudnnBackendGetAttribute");
  for (Descriptor& config :
       std::span(configs).first(std::min(static_cast<std::size_t>(found), configs.size()))) {
    Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle)
        .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (api().finalize(plan.get()) != CUDNN_STATUS_SUCCESS) continue;
    std::int64_t workspace = 0, count = 0;
    check(api().get(plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                    &workspace),
          "cudnnBackendGetAttribute");
    return Plan{std::move(config), std::move(plan), workspace};
  }
  return std::nullopt;
}

std::optional<Plan> make_plan(const AttentionParams& p, cudnnHandle_t handle) {
  const cudnnDataType_t type = p.dtype == DType::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
  const auto rows = [&](Uid uid, const AttentionOperand& operand, std::int64_t heads, std::int64_t seqlen) {
    return tensor(uid, type, {p.batch, heads, seqlen, p.head_dim},
                  {operand.batch_stride, operand.head_stride, operand.seqlen_stride, 1}, Where::memory);
  };
  const Descriptor q = rows(kQ, p.q, p.num_heads, p.seqlen_q), k = rows(kK, p.k, p.num_heads_kv, p.seqlen_k),
                   v = rows(kV, p.v, p.num_heads_kv, p.seqlen_k), o = rows(kO, p.o, p.num_heads, p.seqlen_q),
                   stats = tensor(kStats, CUDNN_DATA_FLOAT, {p.batch, p.num_heads, p.seqlen_q, 1},
                                  {p.num_heads * p.seqlen_q, p.seqlen_q, 1, 1}, Where::memory),
                   scale = tensor(kScale, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, Where::host);
  Descriptor attention(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
  attention.set(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q)
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k)
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v)
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, o)
      .set(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale);
  if (p.softmax_lse != nullptr) attention.set(CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, stats);
  std::optional<CausalMask> mask;
  if (p.causal) mask.emplace(Sizes{p.batch, p.num_heads, p.seqlen_q, p.seqlen_k}).add_to(attention);
  attention.finalize();
  return plan_of(graph_of(std::array{attention.get()}, handle), handle);
}

// Making a plan takes long: one for each device and problem. Null: cuDNN has none.
const Plan* plan_for(const AttentionParams& p, cudnnHandle_t handle) {
  using Key = std::array<std::int64_t, 21>;
  // Never destroyed: at the end of the process the library may be gone.
  static auto& plans = *new std::map<std::pair<cudnnHandle_t, Key>, std::optional<Plan>>;
  Key key = {static_cast<std::int64_t>(p.dtype),
             p.batch,
             p.seqlen_q,
             p.seqlen_k,
             p.num_heads,
             p.num_heads_kv,
             p.head_dim,
             p.causal,
             p.softmax_lse != nullptr};
  std::size_t at = 9;
  for (const AttentionOperand* operand : {&p.q, &p.k, &p.v, &p.o})
    for (const std::int64_t stride : {operand->batch_stride, operand->seqlen_stride, operand->head_stride})
      key[at++] = stride;
  const auto [known, is_new] = plans.try_emplace({handle, key});
  if (is_new) {
    known->second = make_plan(p, handle);
    if (!known->second) SPDLOG_LOGGER_DEBUG(&log(), "[attention] cuDNN has no kernel: computed by Ergon");
  }
  return known->second ? &*known->second : nullptr;
}

bool supported(const AttentionParams& p) {
  return p.batch > 0 && p.seqlen_q > 0 && p.seqlen_k > 0 && p.num_heads > 0 && p.head_dim > 0
         && p.head_dim <= 128 && p.window_left < 0 && (p.window_right < 0 || p.causal) && p.softcap <= 0
         && p.bias.data == nullptr && p.alibi_slopes == nullptr && p.dropout_p == 0
         && p.cu_seqlens_q == nullptr && p.seqlens_k == nullptr
         && (!p.causal || (p.seqlen_q == p.seqlen_k && api().version() >= kSubgraphVersion));
}

}  // namespace

bool cudnn_attention_forward(const AttentionParams& p) {
  if (!supported(p)) return false;
  const CudnnSession session("attention");
  const Plan* const plan = plan_for(p, session.handle());
  if (plan == nullptr) return false;
  float scale = static_cast<float>(p.softmax_scale), minus = -std::numeric_limits<float>::infinity();
  std::vector<std::int64_t> uids{kQ, kK, kV, kO, kScale};
  std::vector<void*> data{p.q.data, p.k.data, p.v.data, p.o.data, &scale};
  if (p.softmax_lse != nullptr) uids.push_back(kStats), data.push_back(p.softmax_lse);
  if (p.causal) uids.push_back(kMinus), data.push_back(&minus);
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, uids)
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::ssize(data), data.data())
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, p.workspace)
      .finalize();
  check(api().execute(session.handle(), plan->descriptor.get(), pack.get()), "cudnnBackendExecute");
  return true;
}

std::int64_t cudnn_attention_workspace(const AttentionParams& p) {
  if (!supported(p)) return 0;
  const CudnnSession session("attention");
  const Plan* const plan = plan_for(p, session.handle());
  return plan == nullptr ? 0 : plan->workspace;
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
std::int64_t cudnn_attention_workspace(const AttentionParams&) { fail(); }

}  // namespace ergon::kernels::cuda

#endif
