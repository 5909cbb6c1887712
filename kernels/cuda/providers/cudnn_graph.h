#pragma once

// cuDNN's backend API (docs.nvidia.com/deeplearning/cudnn): descriptors of tensors and of operations make a
// graph, of which its heuristics make an execution plan. Only where there is a cudnn.h of 9.13.1 or newer.

#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/providers/cudnn_session.h"

namespace ergon::kernels::cuda::cudnn {

// Error before 9.13.1.
inline std::size_t version() {
  const std::size_t number = ERGON_CUDNN(cudnnGetVersion)();
  ERGON_CHECK(number >= 91301, "[attention] cudnn {}: expected 91301 (9.13.1) or newer", number);
  return number;
}

class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    ERGON_CUDNN_CHECK("attention", cudnnBackendCreateDescriptor, type, &descriptor_);
  }
  ~Descriptor() {
    if (descriptor_ != nullptr) ERGON_CUDNN(cudnnBackendDestroyDescriptor)(descriptor_);
  }
  Descriptor(Descriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }

  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
                  const void* values) {
    ERGON_CUDNN_CHECK("attention", cudnnBackendSetAttribute, descriptor_, name, type, count, values);
    return *this;
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    return set(name, type, 1, &value);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, std::span<const std::int64_t> values) {
    return set(name, CUDNN_TYPE_INT64, std::ssize(values), values.data());
  }
  Descriptor& set(cudnnBackendAttributeName_t name, std::span<const cudnnBackendDescriptor_t> values) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(values), values.data());
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, value.descriptor_);
  }
  Descriptor& finalize() {
    ERGON_CUDNN_CHECK("attention", cudnnBackendFinalize, descriptor_);
    return *this;
  }
  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

using Sizes = std::array<std::int64_t, 4>;  // (batch, heads, rows, columns)

inline Sizes contiguous(const Sizes& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
}

struct Tensor {
  std::int64_t uid;  // its name in the graph
  cudnnDataType_t type;
  Sizes sizes, strides;
  const Descriptor* descriptor;

  operator const Descriptor&() const { return *descriptor; }
};

// Operations and their tensors; names that are not given are counted from 1000.
class Graph {
 public:
  Tensor memory(std::int64_t uid, cudnnDataType_t type, const Sizes& sizes, const Sizes& strides) {
    return tensor(uid, type, sizes, strides, 16, false, false);
  }
  Tensor host(std::int64_t uid) {  // a float
    return tensor(uid, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, 4, true, false);
  }
  Tensor registers(cudnnDataType_t type, const Sizes& sizes) {
    return registers(type, sizes, contiguous(sizes));
  }

  Descriptor& operation(cudnnBackendDescriptorType_t type) {
    Descriptor& added = kept_.emplace_back(type);
    operations_.push_back(added.get());
    return added;
  }

  // y = mode(x, b), or t ? x : b for BINARY_SELECT, of y's type.
  void pointwise(cudnnPointwiseMode_t mode, const Tensor& x, const Tensor& y, const Tensor* b = nullptr,
                 const Tensor* t = nullptr, std::int64_t axis = -1) {
    Descriptor& what = kept_.emplace_back(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    what.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode)
        .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE,
             mode == CUDNN_POINTWISE_IDENTITY ? CUDNN_DATA_FLOAT : y.type);
    if (axis >= 0) what.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
    what.finalize();
    Descriptor& op = operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, what)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    if (b != nullptr) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
    if (t != nullptr) op.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *t);
    op.finalize();
  }
  Tensor binary(cudnnPointwiseMode_t mode, const Tensor& x, const Tensor& b) {
    const Tensor y = registers(CUDNN_DATA_FLOAT, x.sizes);
    pointwise(mode, x, y, &b);
    return y;
  }

  // scores, or -infinity where the column is above the row; `minus` is that infinity.
  Tensor causal(const Tensor& scores, const Tensor& minus) {
    const Tensor row = registers(CUDNN_DATA_INT32, scores.sizes),
                 column = registers(CUDNN_DATA_INT32, scores.sizes),
                 sees = registers(CUDNN_DATA_BOOLEAN, scores.sizes),
                 masked = registers(CUDNN_DATA_FLOAT, scores.sizes);
    pointwise(CUDNN_POINTWISE_GEN_INDEX, scores, row, nullptr, nullptr, 2);
    pointwise(CUDNN_POINTWISE_GEN_INDEX, scores, column, nullptr, nullptr, 3);
    pointwise(CUDNN_POINTWISE_CMP_GE, row, sees, &column);
    pointwise(CUDNN_POINTWISE_BINARY_SELECT, scores, masked, &minus, &sees);
    return masked;
  }

  // y = the sum of x along the dimensions in which y has size 1, or a group of them.
  void sum(const Tensor& x, const Tensor& y) {
    Descriptor& what = kept_.emplace_back(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    what.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, CUDNN_REDUCE_TENSOR_ADD)
        .set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
        .finalize();
    operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)
        .set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, what)
        .set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x)
        .set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y)
        .finalize();
  }

  // c = a b
  void matmul(const Tensor& a, const Tensor& b, const Tensor& c) {
    Descriptor& what = kept_.emplace_back(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    what.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT).finalize();
    operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)
        .set(CUDNN_ATTR_OPERATION_MATMUL_DESC, what)
        .set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a)
        .set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b)
        .set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c)
        .finalize();
  }

  // x with rows and columns exchanged, rounded to `type`.
  Tensor transposed(const Tensor& x, cudnnDataType_t type) {
    const Tensor y = registers(type, {x.sizes[0], x.sizes[1], x.sizes[3], x.sizes[2]},
                               {x.strides[0], x.strides[1], x.strides[3], x.strides[2]});
    operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR)
        .set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x)
        .set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y)
        .finalize();
    return y;
  }

  // All operations so far. No handle: a part of another graph.
  const Descriptor& finalized(cudnnHandle_t handle) {
    Descriptor& graph = kept_.emplace_back(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (handle != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
    return graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operations_).finalize();
  }

 private:
  Tensor registers(cudnnDataType_t type, const Sizes& sizes, const Sizes& strides) {
    return tensor(unnamed_++, type, sizes, strides, 4, false, true);
  }
  Tensor tensor(std::int64_t uid, cudnnDataType_t type, const Sizes& sizes, const Sizes& strides,
                std::int64_t alignment, bool by_value, bool is_virtual) {
    Descriptor& d = kept_.emplace_back(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, uid)
        .set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type)
        .set(CUDNN_ATTR_TENSOR_DIMENSIONS, sizes)
        .set(CUDNN_ATTR_TENSOR_STRIDES, strides)
        .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment)
        .set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, by_value)
        .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual)
        .finalize();
    return {uid, type, sizes, strides, &d};
  }

  std::int64_t unnamed_ = 1000;
  std::deque<Descriptor> kept_;  // a deque: what it holds stays where it is
  std::vector<cudnnBackendDescriptor_t> operations_;
};

// An execution plan, and how large its workspace is.
struct Plan {
  Descriptor config, descriptor;
  std::int64_t workspace;
};

// The first of the heuristics' choices that makes a plan.
inline std::optional<Plan> plan_of(const Descriptor& graph, cudnnHandle_t handle) {
  Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  if (ERGON_CUDNN(cudnnBackendFinalize)(heuristics.get()) != CUDNN_STATUS_SUCCESS) return std::nullopt;
  std::vector<Descriptor> configs;
  std::vector<cudnnBackendDescriptor_t> pointers;
  for (int i = 0; i < 8; ++i)
    pointers.push_back(configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  std::int64_t found = 0;
  ERGON_CUDNN_CHECK("attention", cudnnBackendGetAttribute, heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                    CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(pointers), &found, pointers.data());
  for (Descriptor& config :
       std::span(configs).first(std::min(static_cast<std::size_t>(found), configs.size()))) {
    Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle)
        .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (ERGON_CUDNN(cudnnBackendFinalize)(plan.get()) != CUDNN_STATUS_SUCCESS) continue;
    std::int64_t workspace = 0, count = 0;
    ERGON_CUDNN_CHECK("attention", cudnnBackendGetAttribute, plan.get(),
                      CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &workspace);
    return Plan{std::move(config), std::move(plan), workspace};
  }
  return std::nullopt;
}

// Where a plan finds its tensors.
class Pack {
 public:
  Pack& add(std::int64_t uid, void* data) {
    uids_.push_back(uid);
    data_.push_back(data);
    return *this;
  }
  void execute(const Plan& plan, void* workspace, cudnnHandle_t handle) const {
    Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, uids_)
        .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::ssize(data_), data_.data())
        .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace)
        .finalize();
    ERGON_CUDNN_CHECK("attention", cudnnBackendExecute, handle, plan.descriptor.get(), pack.get());
  }

 private:
  std::vector<std::int64_t> uids_;
  std::vector<void*> data_;
};

}  // namespace ergon::kernels::cuda::cudnn
