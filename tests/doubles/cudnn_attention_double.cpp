// The part of libcudnn.so.9's place that computes attention: descriptors, and what the cuDNN documentation
// says of OPERATION_SDPA_FWD and of the pointwise operations on its scores.

#if __has_include(<cudnn.h>)

#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include <cudnn.h>

#include "tests/doubles/device_memory.h"

int ergon_double_attentions = 0;  // counted by ergon_double_calls

#if CUDNN_VERSION >= 91301

namespace {

using namespace ergon::test_double;

std::size_t version = 92600;
constexpr std::int64_t kWorkspace = 512;
constexpr int kSubgraph = 2811, kSubgraphInput = 2812, kSubgraphOutput = 2813;  // of cuDNN 9.21

struct Attribute {
  cudnnBackendAttributeType_t type;
  std::vector<char> bytes;
};
struct Descriptor {
  cudnnBackendDescriptorType_t type;
  bool finalized = false, refused = false;
  std::map<int, Attribute> attributes;

  bool has(int name) const { return attributes.count(name) > 0; }
  template <class T>
  std::vector<T> all(int name) const {
    const auto at = attributes.find(name);
    if (at == attributes.end()) return {};
    std::vector<T> values(at->second.bytes.size() / sizeof(T));
    std::memcpy(values.data(), at->second.bytes.data(), values.size() * sizeof(T));
    return values;
  }
  template <class T>
  T one(int name) const {
    T value{};
    const auto at = attributes.find(name);
    if (at != attributes.end() && at->second.bytes.size() == sizeof(T))
      std::memcpy(&value, at->second.bytes.data(), sizeof(T));
    return value;
  }
  const Descriptor& link(int name) const { return *one<Descriptor*>(name); }
};
Descriptor& of(cudnnBackendDescriptor_t descriptor) { return *static_cast<Descriptor*>(descriptor); }

std::size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
      return sizeof(bool);
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    default:
      return 4;  // enumerations
  }
}

struct Tensor {
  std::int64_t uid;
  cudnnDataType_t type;
  std::vector<std::int64_t> sizes, strides;
  bool by_value, is_virtual;

  explicit Tensor(const Descriptor& d)
      : uid(d.one<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID)),
        type(d.one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE)),
        sizes(d.all<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS)),
        strides(d.all<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES)),
        by_value(d.one<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE)),
        is_virtual(d.one<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL)) {}
  cudaDataType_t cuda_type() const {
    return type == CUDNN_DATA_BFLOAT16 ? CUDA_R_16BF : type == CUDNN_DATA_HALF ? CUDA_R_16F : CUDA_R_32F;
  }
  std::int64_t row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return b * strides[0] + h * strides[1] + i * strides[2];
  }
};

// The tensors of an operation, as the graph names them.
struct Operation {
  Tensor q, k, v, o, scale;
  bool has_stats;

  explicit Operation(const Descriptor& d)
      : q(d.link(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC)),
        k(d.link(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC)),
        v(d.link(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC)),
        o(d.link(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC)),
        scale(d.link(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC)),
        has_stats(d.has(CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC)) {}
  bool fits() const {
    for (const Tensor* t : {&q, &k, &v, &o})
      if (t->sizes.size() != 4 || t->strides.size() != 4 || t->strides[3] != 1 || t->type != q.type
          || t->by_value || t->is_virtual)
        return false;
    return q.type != CUDNN_DATA_FLOAT && o.sizes == q.sizes && v.sizes == k.sizes && q.sizes[0] == k.sizes[0]
           && q.sizes[1] % k.sizes[1] == 0 && q.sizes[3] == k.sizes[3] && q.sizes[3] % 8 == 0
           && q.sizes[3] <= 128 && scale.by_value && scale.type == CUDNN_DATA_FLOAT;
  }
};

using Pointers = std::map<std::int64_t, void*>;

// What a graph of pointwise operations makes of the score of query i and key j.
double modified(const Descriptor& attention, const Pointers& data, double score, int i, int j) {
  if (!attention.has(kSubgraph)) return score;
  std::map<std::int64_t, double> values{{attention.one<std::int64_t>(kSubgraphInput), score}};
  const auto value = [&](const Descriptor& operation, int name) {
    const Tensor t(operation.link(name));
    if (t.by_value) return static_cast<double>(*static_cast<const float*>(data.at(t.uid)));
    return values.at(t.uid);
  };
  for (const Descriptor* operation :
       attention.link(kSubgraph).all<Descriptor*>(CUDNN_ATTR_OPERATIONGRAPH_OPS)) {
    const Descriptor& what = operation->link(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const double x = value(*operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
    double& y = values[Tensor(operation->link(CUDNN_ATTR_OPERATION_POINTWISE_YDESC)).uid];
    switch (what.one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE)) {
      case CUDNN_POINTWISE_GEN_INDEX:
        y = what.one<std::int64_t>(CUDNN_ATTR_POINTWISE_AXIS) == 2 ? i : j;
        break;
      case CUDNN_POINTWISE_CMP_GE:
        y = x >= value(*operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC) ? 1 : 0;
        break;
      case CUDNN_POINTWISE_BINARY_SELECT:
        y = value(*operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC) != 0
                ? x
                : value(*operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
        break;
      default:
        return std::numeric_limits<double>::quiet_NaN();
    }
  }
  return values.at(attention.one<std::int64_t>(kSubgraphOutput));
}

void attend(const Descriptor& operation, const Operation& op, const Pointers& data) {
  const std::int64_t dim = op.q.sizes[3], keys = op.k.sizes[2], group = op.q.sizes[1] / op.k.sizes[1];
  const float scale = *static_cast<const float*>(data.at(op.scale.uid));
  const auto row = [&](const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t i) {
    return read(data.at(t.uid), t.cuda_type(), t.row(b, h, i), dim);
  };
  for (std::int64_t b = 0; b < op.q.sizes[0]; ++b)
    for (std::int64_t h = 0; h < op.q.sizes[1]; ++h)
      for (std::int64_t i = 0; i < op.q.sizes[2]; ++i) {
        const auto q = row(op.q, b, h, i);
        std::vector<double> o(static_cast<std::size_t>(dim));
        double sum = 0;
        for (std::int64_t j = 0; j < keys; ++j) {
          const auto k = row(op.k, b, h / group, j), v = row(op.v, b, h / group, j);
          double score = 0;
          for (std::size_t d = 0; d < q.size(); ++d) score += q[d] * k[d];
          const double p =
              std::exp(modified(operation, data, scale * score, static_cast<int>(i), static_cast<int>(j)));
          sum += p;
          for (std::size_t d = 0; d < v.size(); ++d) o[d] += p * v[d];
        }
        for (double& value : o) value /= sum;
        write(data.at(op.o.uid), op.o.cuda_type(), op.o.row(b, h, i), o);
        if (!op.has_stats) continue;
        const Tensor stats(operation.link(CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC));
        write(data.at(stats.uid), stats.cuda_type(), stats.row(b, h, i), {std::log(sum)});
      }
}

}  // namespace

extern "C" {

void ergon_double_set_version(std::size_t number) { version = number; }
std::size_t cudnnGetVersion() { return version; }

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* descriptor) {
  *descriptor = new Descriptor{type, false, false, {}};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t) {
  return CUDNN_STATUS_SUCCESS;  // others may hold it: kept, as the documentation does not say who owns it
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t count,
                                       const void* values) {
  Descriptor& d = of(descriptor);
  if (d.finalized || (name >= kSubgraph && name <= kSubgraphOutput && version < 92100))
    return CUDNN_STATUS_NOT_SUPPORTED;
  const char* const bytes = static_cast<const char*>(values);
  d.attributes[name] = {type, {bytes, bytes + static_cast<std::size_t>(count) * size_of(type)}};
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
    for (const Descriptor* link : d.all<Descriptor*>(name))
      if (!link->finalized) return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  Descriptor& d = of(descriptor);
  if (d.type == CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR && !Operation(d).fits())
    return CUDNN_STATUS_BAD_PARAM;
  if (d.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR
      && d.link(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).refused)
    return CUDNN_STATUS_NOT_SUPPORTED;
  d.finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

// Two configurations, of which the first makes no plan; and the size of a plan's workspace.
cudnnStatus_t cudnnBackendGetAttribute(const cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t,
                                       std::int64_t requested, std::int64_t* count, void* values) {
  Descriptor& d = of(descriptor);
  if (!d.finalized) return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
    *static_cast<std::int64_t*>(values) = kWorkspace;
    *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name != CUDNN_ATTR_ENGINEHEUR_RESULTS || requested < 2) return CUDNN_STATUS_NOT_SUPPORTED;
  *count = 2;
  for (int i = 0; i < 2; ++i) {
    Descriptor& config = of(static_cast<cudnnBackendDescriptor_t*>(values)[i]);
    config.attributes[CUDNN_ATTR_ENGINE_OPERATION_GRAPH] =
        d.attributes.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    config.finalized = true;
    config.refused = i == 0;
  }
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  const Descriptor &p = of(plan), &given = of(pack);
  const auto uids = given.all<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = given.all<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  if (!p.finalized || !given.finalized || uids.size() != pointers.size()
      || given.one<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE) == nullptr)
    return CUDNN_STATUS_BAD_PARAM;
  if (cudaDeviceSynchronize() != cudaSuccess) return CUDNN_STATUS_EXECUTION_FAILED;
  Pointers data;
  for (std::size_t i = 0; i < uids.size(); ++i) data[uids[i]] = pointers[i];
  const Descriptor& operation = p.link(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)
                                    .link(CUDNN_ATTR_ENGINE_OPERATION_GRAPH)
                                    .link(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  attend(operation, Operation(operation), data);
  ++ergon_double_attentions;
  return CUDNN_STATUS_SUCCESS;
}

}  // extern "C"

#endif
#endif
