// The part of libcudnn.so.9's place that computes attention: descriptors, and what the cuDNN documentation
// says of OPERATION_SDPA_FWD and of graphs of products, sums, reshapes and pointwise operations.

#if __has_include(<cudnn.h>)

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>

#include <cudnn.h>

#include "tests/doubles/device_memory.h"

int ergon_double_attentions = 0;  // counted by ergon_double_calls

#if CUDNN_VERSION >= 91301

namespace {

using namespace ergon::test_double;

// What a test has set.
std::size_t version = 92600;
bool has_kernels = true;
cudnnStatus_t execution = CUDNN_STATUS_SUCCESS;

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

using Index = std::array<std::int64_t, 4>;

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
  std::int64_t offset(const Index& i) const {
    return i[0] * strides[0] + i[1] * strides[1] + i[2] * strides[2] + i[3] * strides[3];
  }
  std::int64_t extent() const { return offset({sizes[0] - 1, sizes[1] - 1, sizes[2] - 1, sizes[3] - 1}) + 1; }
};

template <class F>
void for_each(const std::vector<std::int64_t>& sizes, const F& f) {
  for (Index i{}; i[0] < sizes[0]; ++i[0])
    for (i[1] = 0; i[1] < sizes[1]; ++i[1])
      for (i[2] = 0; i[2] < sizes[2]; ++i[2])
        for (i[3] = 0; i[3] < sizes[3]; ++i[3]) f(i);
}

// A tensor's elements, the last index running fastest.
struct Values {
  std::vector<std::int64_t> sizes;
  std::vector<double> data;

  explicit Values(const std::vector<std::int64_t>& of)
      : sizes(of), data(static_cast<std::size_t>(of[0] * of[1] * of[2] * of[3])) {}
  double& operator[](const Index& i) {
    return data.at(static_cast<std::size_t>(((i[0] * sizes[1] + i[1]) * sizes[2] + i[2]) * sizes[3] + i[3]));
  }
  // The element for index i of a tensor that is as large or a multiple of it.
  double& of(Index i, const std::vector<std::int64_t>& larger) {
    for (std::size_t d = 0; d < 4; ++d) i[d] = i[d] * sizes[d] / larger[d];
    return (*this)[i];
  }
};

// c = a b, of batches and heads of which a and b may have fewer than c.
Values product(Values a, Values b, const std::vector<std::int64_t>& sizes) {
  Values c(sizes);
  for_each(sizes, [&](const Index& i) {
    for (std::int64_t k = 0; k < a.sizes[3]; ++k)
      c[i] += a.of({i[0], i[1], i[2], k}, {sizes[0], sizes[1], sizes[2], a.sizes[3]})
              * b.of({i[0], i[1], k, i[3]}, {sizes[0], sizes[1], b.sizes[2], sizes[3]});
  });
  return c;
}

Values turned(Values x) {
  Values y({x.sizes[0], x.sizes[1], x.sizes[3], x.sizes[2]});
  for_each(y.sizes, [&](const Index& i) { y[i] = x[{i[0], i[1], i[3], i[2]}]; });
  return y;
}

// Computes the operations of a plan's graph, one after another. std::out_of_range: a tensor that is not in
// the pack or has not been computed.
class Run {
 public:
  Run(std::map<std::int64_t, void*> data, void* workspace) : data_(std::move(data)), workspace_(workspace) {
    claim(0, workspace, kWorkspace);
  }

  void graph(const Descriptor& graph) {
    for (const Descriptor* op : graph.all<Descriptor*>(CUDNN_ATTR_OPERATIONGRAPH_OPS)) {
      write(workspace_, CUDA_R_32F, 0,
            std::vector<double>(kWorkspace / sizeof(float), std::numeric_limits<double>::quiet_NaN()));
      switch (op->type) {
        case CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR:
          attention(*op);
          break;
        case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR: {
          const Tensor c(op->link(CUDNN_ATTR_OPERATION_MATMUL_CDESC));
          store(c, product(load(*op, CUDNN_ATTR_OPERATION_MATMUL_ADESC),
                           load(*op, CUDNN_ATTR_OPERATION_MATMUL_BDESC), c.sizes));
          break;
        }
        case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR: {
          const Tensor y(op->link(CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
          Values x = load(*op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC), sums(y.sizes);
          for_each(x.sizes, [&](const Index& i) { sums.of(i, x.sizes) += x[i]; });
          store(y, sums);
          break;
        }
        case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
          reshape(Tensor(op->link(CUDNN_ATTR_OPERATION_RESHAPE_XDESC)),
                  Tensor(op->link(CUDNN_ATTR_OPERATION_RESHAPE_YDESC)));
          break;
        default:
          pointwise(*op);
      }
    }
  }

 private:
  // fp32 in memory, and the workspace, lie apart from each other.
  void claim(const Tensor& t) {
    if (t.type == CUDNN_DATA_FLOAT) claim(t.uid, data_.at(t.uid), t.extent() * std::int64_t{sizeof(float)});
  }
  void claim(std::int64_t uid, void* data, std::int64_t bytes) {
    const auto first = reinterpret_cast<std::uintptr_t>(data);
    const auto end = first + static_cast<std::uintptr_t>(bytes);
    for (const auto& [other, range] : claimed_)
      if (other != uid && first < range.second && range.first < end) throw std::out_of_range("overlap");
    claimed_[uid] = {first, end};
  }

  Values load(const Descriptor& operation, int name) { return load(Tensor(operation.link(name))); }
  Values load(const Tensor& t) {
    if (t.is_virtual) return virtual_.at(t.uid);
    Values values(t.sizes);
    if (t.by_value) {
      values.data[0] = *static_cast<const float*>(data_.at(t.uid));
      return values;
    }
    claim(t);
    const auto memory = read(data_.at(t.uid), t.cuda_type(), 0, t.extent());
    for_each(t.sizes, [&](const Index& i) { values[i] = memory.at(static_cast<std::size_t>(t.offset(i))); });
    return values;
  }

  void store(const Tensor& t, Values values) {
    if (t.is_virtual) {
      for (double& value : values.data)
        value = with_type(t.cuda_type(),
                          [&](auto zero) { return static_cast<double>(static_cast<decltype(zero)>(value)); });
      virtual_.insert_or_assign(t.uid, std::move(values));
      return;
    }
    claim(t);
    for_each({t.sizes[0], t.sizes[1], t.sizes[2], 1}, [&](Index i) {
      std::vector<double> row;
      for (i[3] = 0; i[3] < t.sizes[3]; ++i[3]) row.push_back(values[i]);
      i[3] = 0;
      write(data_.at(t.uid), t.cuda_type(), t.offset(i), row);
    });
  }

  // The same elements at the same places, of other sizes and strides.
  void reshape(const Tensor& x, const Tensor& y) {
    Values from = load(x), to(y.sizes);
    std::vector<double> memory(static_cast<std::size_t>(x.extent()));
    for_each(x.sizes, [&](const Index& i) { memory.at(static_cast<std::size_t>(x.offset(i))) = from[i]; });
    for_each(y.sizes, [&](const Index& i) { to[i] = memory.at(static_cast<std::size_t>(y.offset(i))); });
    store(y, to);
  }

  void pointwise(const Descriptor& op) {
    const Descriptor& what = op.link(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const Tensor out(op.link(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    const auto input = [&](int name) { return op.has(name) ? load(op, name) : Values({1, 1, 1, 1}); };
    Values xs = input(CUDNN_ATTR_OPERATION_POINTWISE_XDESC), bs = input(CUDNN_ATTR_OPERATION_POINTWISE_BDESC),
           ts = input(CUDNN_ATTR_OPERATION_POINTWISE_TDESC), ys(out.sizes);
    const auto mode = what.one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
    const auto axis = static_cast<std::size_t>(what.one<std::int64_t>(CUDNN_ATTR_POINTWISE_AXIS));
    for_each(ys.sizes, [&](const Index& i) {
      const double x = xs.of(i, ys.sizes), b = bs.of(i, ys.sizes);
      double& y = ys[i];
      switch (mode) {
        case CUDNN_POINTWISE_IDENTITY:
          y = x;
          break;
        case CUDNN_POINTWISE_MUL:
          y = x * b;
          break;
        case CUDNN_POINTWISE_SUB:
          y = x - b;
          break;
        case CUDNN_POINTWISE_EXP:
          y = std::exp(x);
          break;
        case CUDNN_POINTWISE_GEN_INDEX:
          y = static_cast<double>(i.at(axis));
          break;
        case CUDNN_POINTWISE_CMP_GE:
          y = x >= b ? 1 : 0;
          break;
        case CUDNN_POINTWISE_BINARY_SELECT:
          y = ts.of(i, ys.sizes) != 0 ? x : b;
          break;
        default:
          y = std::numeric_limits<double>::quiet_NaN();
      }
    });
    store(out, ys);
  }

  void attention(const Descriptor& op) {
    const Values q = load(op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC);
    const Values k = load(op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC);
    Values scores = product(q, turned(k), {q.sizes[0], q.sizes[1], q.sizes[2], k.sizes[2]});
    const double scale = load(op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC).data[0];
    for (double& score : scores.data) score *= scale;
    if (op.has(kSubgraph)) {
      virtual_.insert_or_assign(op.one<std::int64_t>(kSubgraphInput), scores);
      graph(op.link(kSubgraph));
      scores = virtual_.at(op.one<std::int64_t>(kSubgraphOutput));
    }
    Values sums({q.sizes[0], q.sizes[1], q.sizes[2], 1});
    for (double& score : scores.data) score = std::exp(score);
    for_each(scores.sizes, [&](const Index& i) { sums.of(i, scores.sizes) += scores[i]; });
    for_each(scores.sizes, [&](const Index& i) { scores[i] /= sums.of(i, scores.sizes); });
    const Tensor o(op.link(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC));
    store(o, product(scores, load(op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC), o.sizes));
    if (!op.has(CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC)) return;
    for (double& sum : sums.data) sum = std::log(sum);
    store(Tensor(op.link(CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC)), sums);
  }

  std::map<std::int64_t, void*> data_;
  void* workspace_;
  std::map<std::int64_t, Values> virtual_;
  std::map<std::int64_t, std::pair<std::uintptr_t, std::uintptr_t>> claimed_;
};

// Is it an operation of sizes and types that belong together?
bool fits(const Descriptor& d) {
  const auto tensor = [&](int name) { return Tensor(d.link(name)); };
  if (d.type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
    const Tensor a = tensor(CUDNN_ATTR_OPERATION_MATMUL_ADESC), b = tensor(CUDNN_ATTR_OPERATION_MATMUL_BDESC),
                 c = tensor(CUDNN_ATTR_OPERATION_MATMUL_CDESC);
    return a.sizes[3] == b.sizes[2] && a.sizes[2] == c.sizes[2] && b.sizes[3] == c.sizes[3]
           && a.sizes[0] == c.sizes[0] && b.sizes[0] == c.sizes[0] && c.sizes[1] % a.sizes[1] == 0
           && c.sizes[1] % b.sizes[1] == 0;
  }
  if (d.type != CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR) return true;
  const Tensor q = tensor(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC),
               k = tensor(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC),
               v = tensor(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC),
               o = tensor(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC),
               scale = tensor(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC);
  for (const Tensor& t : {q, k, v, o})
    if (t.sizes.size() != 4 || t.strides.size() != 4 || t.strides[3] != 1 || t.type != q.type || t.by_value
        || t.is_virtual)
      return false;
  return q.type != CUDNN_DATA_FLOAT && o.sizes == q.sizes && v.sizes == k.sizes && q.sizes[0] == k.sizes[0]
         && q.sizes[1] % k.sizes[1] == 0 && q.sizes[3] == k.sizes[3] && q.sizes[3] % 8 == 0
         && q.sizes[3] <= 128 && scale.by_value && scale.type == CUDNN_DATA_FLOAT;
}

// Has the library a kernel for it? Of the forward's operation, or of the backward's five products.
bool known(const Descriptor& graph) {
  std::map<cudnnBackendDescriptorType_t, int> count;
  const auto operations = graph.all<Descriptor*>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  for (const Descriptor* op : operations) ++count[op->type];
  return (operations.size() == 1 && count[CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR] == 1)
         || (count[CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR] == 5
             && count[CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR] == 3);
}

}  // namespace

extern "C" {

void ergon_double_set_version(std::size_t number) { version = number; }
void ergon_double_set_kernels(bool any) { has_kernels = any; }
void ergon_double_set_execution(int status) { execution = static_cast<cudnnStatus_t>(status); }
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
  if (!fits(d)) return CUDNN_STATUS_BAD_PARAM;
  if (d.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR
      && d.link(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).refused)
    return CUDNN_STATUS_NOT_SUPPORTED;
  d.finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

// Two configurations, of which the first makes no plan, or none; and the size of a plan's workspace.
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
  *count = has_kernels && known(d.link(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)) ? 2 : 0;
  for (int i = 0; i < *count; ++i) {
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
  if (execution != CUDNN_STATUS_SUCCESS) return execution;
  if (cudaDeviceSynchronize() != cudaSuccess) return CUDNN_STATUS_EXECUTION_FAILED;
  std::map<std::int64_t, void*> data;
  for (std::size_t i = 0; i < uids.size(); ++i) data[uids[i]] = pointers[i];
  try {
    Run(std::move(data), given.one<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE))
        .graph(p.link(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).link(CUDNN_ATTR_ENGINE_OPERATION_GRAPH));
  } catch (const std::out_of_range&) {
    return CUDNN_STATUS_BAD_PARAM;
  }
  ++ergon_double_attentions;
  return CUDNN_STATUS_SUCCESS;
}

}  // extern "C"

#endif
#endif
