#include "core/tensor.h"

#include <algorithm>
#include <cstring>

#include "core/autograd.h"
#include "core/copy.h"
#include "core/cuda_backend.h"
#include "core/half.h"
#include "core/op_scope.h"
#include "core/tensor_impl.h"

namespace ergon {

Storage::Storage(Device storage_device, std::int64_t storage_bytes, bool storage_pinned)
    : device(storage_device), bytes(storage_bytes), pinned(storage_pinned) {
  detail::allocate(*this);
}

Storage::Storage(void* blob, std::int64_t blob_bytes, std::shared_ptr<void> blob_owner)
    : device(Device::cpu()), bytes(blob_bytes), data(blob), borrowed(true), owner(std::move(blob_owner)) {}

Storage::~Storage() {
  if (!borrowed) detail::deallocate(*this);
}

namespace {

TensorImpl& get(const std::shared_ptr<TensorImpl>& impl) {
  ERGON_CHECK(impl != nullptr, "the tensor is undefined");
  return *impl;
}

}  // namespace

const Shape& Tensor::shape() const { return get(impl_).shape; }
const Strides& Tensor::strides() const { return get(impl_).strides; }
std::int64_t Tensor::size(std::int64_t which) const { return shape()[wrap_dim(which, dim(), "size")]; }
std::int64_t Tensor::stride(std::int64_t which) const { return strides()[wrap_dim(which, dim(), "stride")]; }
std::int64_t Tensor::numel() const { return ergon::numel(shape()); }
DType Tensor::dtype() const { return get(impl_).dtype; }
Device Tensor::device() const { return get(impl_).storage->device; }

bool Tensor::is_pinned() const { return get(impl_).storage->pinned; }

bool Tensor::is_contiguous() const {
  std::int64_t expected = 1;
  for (int i = dim() - 1; i >= 0; --i) {
    if (shape()[i] == 1) continue;
    if (shape()[i] == 0) return true;
    if (strides()[i] != expected) return false;
    expected *= shape()[i];
  }
  return true;
}

void* Tensor::data_ptr() const {
  TensorImpl& impl = get(impl_);
  return static_cast<char*>(impl.storage->data) + impl.offset * size_of(impl.dtype);
}

template <class T>
T* Tensor::data() const {
  ERGON_CHECK(dtype() == dtype_of<T>(), "[data] the tensor has dtype {}, not {}", name_of(dtype()),
              name_of(dtype_of<T>()));
  return static_cast<T*>(data_ptr());
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  NoGradGuard no_grad;
  const Tensor converted = to(dtype_of<T>()).to(Device::cpu()).contiguous();
  std::vector<T> values(static_cast<std::size_t>(numel()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = converted.data<T>()[i];
  return values;
}

template <class T>
T Tensor::item() const {
  ERGON_CHECK(numel() == 1, "[item] shape {}: expected a tensor of one element", shape());
  NoGradGuard no_grad;
  return *to(Device::cpu()).to(dtype_of<T>()).template data<T>();
}

#define ERGON_INSTANTIATE(T)           \
  template T* Tensor::data<T>() const; \
  template T Tensor::item<T>() const;  \
  template std::vector<T> Tensor::to_vector<T>() const;
ERGON_INSTANTIATE(float)
ERGON_INSTANTIATE(bf16)
ERGON_INSTANTIATE(f16)
ERGON_INSTANTIATE(double)
ERGON_INSTANTIATE(std::int8_t)
ERGON_INSTANTIATE(std::uint8_t)
ERGON_INSTANTIATE(std::int32_t)
ERGON_INSTANTIATE(std::int64_t)
ERGON_INSTANTIATE(bool)
#undef ERGON_INSTANTIATE

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  OpScope scope("clone", *this);
  Tensor result = empty(shape(), options());
  detail::copy(result, *this);
  return autograd::record("clone", result, {*this}, [](const Tensor& grad_output, const auto&) {
    return autograd::Gradients{grad_output};
  });
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == this->dtype()) return *this;
  OpScope scope("to", *this);
  Tensor result = empty(shape(), {dtype, device()});
  detail::copy(result, *this);
  if (!is_floating_point(dtype)) return result;
  return autograd::record("to", result, {*this},
                          [from = this->dtype()](const Tensor& grad_output, const auto&) {
                            return autograd::Gradients{grad_output.to(from)};
                          });
}

Tensor Tensor::to(Device target, bool non_blocking) const {
  check_available(target);
  if (target == device()) return *this;
  OpScope scope("to", *this);
  const Tensor source = contiguous();
  // Memory of the copy stream: a block that the computation has freed would have to be waited for.
  const bool beside = non_blocking && source.is_pinned();
  const Tensor result = [&] {
    StreamGuard guard(beside ? copy_stream(target) : current_stream(target));
    return empty(shape(), {dtype(), target});
  }();
  detail::cuda::copy_across(result, source, non_blocking);
  return autograd::record("to", result, {*this}, [from = device()](const Tensor& grad_output, const auto&) {
    return autograd::Gradients{grad_output.to(from)};
  });
}

Tensor Tensor::pin_memory() const {
  ERGON_CHECK(device().is_cpu(), "[pin_memory] a tensor on {}: expected one on the cpu", to_string(device()));
  if (is_pinned()) return *this;
  OpScope scope("pin_memory", *this);
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::make_shared<Storage>(Device::cpu(), nbytes(), true);
  impl->shape = shape();
  impl->strides = contiguous_strides(shape());
  impl->dtype = dtype();
  const Tensor result(std::move(impl));
  detail::copy(result, *this);
  return result;
}

void Tensor::record_stream(const Stream& stream) const {
  Storage& storage = *get(impl_).storage;
  const auto& uses = storage.other_uses;
  if (stream.device().is_cpu() || stream == storage.stream
      || std::find(uses.begin(), uses.end(), stream) != uses.end()) {
    return;
  }
  storage.other_uses.push_back(stream);
}

Tensor& Tensor::copy_(const Tensor& source, bool non_blocking) {
  ERGON_CHECK(broadcast_shapes(shape(), source.shape(), "copy_") == shape(),
              "[copy_] a source of shape {} does not broadcast to {}", source.shape(), shape());
  autograd::check_inplace("copy_", *this, std::span(&source, 1));
  OpScope scope("copy_");
  detail::copy(*this, source, non_blocking);
  autograd::record_inplace("copy_", *this, {source},
                           [shape = source.shape(), dtype = source.dtype(), device = source.device()](
                               const Tensor& grad_output, const autograd::NeedsGrad& needs) {
                             autograd::Gradients grads(2);
                             if (needs[0]) grads[0] = zeros_like(grad_output);
                             if (needs[1]) grads[1] = detail::sum_to(grad_output, shape).to(dtype).to(device);
                             return grads;
                           });
  return *this;
}

Tensor& Tensor::fill_(double value) {
  OpScope scope("fill_", *this);
  autograd::check_inplace("fill_", *this);
  detail::fill(*this, value);
  autograd::record_inplace("fill_", *this, {}, [](const Tensor& grad_output, const auto&) {
    return autograd::Gradients{zeros_like(grad_output)};
  });
  return *this;
}

void Tensor::set_data(const Tensor& other) {
  TensorImpl& impl = get(impl_);
  const TensorImpl& from = get(other.impl_);
  ERGON_CHECK(is_leaf(), "[set_data] the tensor is the result of an operation: expected a leaf");
  impl.storage = from.storage;
  impl.shape = from.shape;
  impl.strides = from.strides;
  impl.offset = from.offset;
  impl.dtype = from.dtype;
  if (impl.autograd && impl.autograd->accumulate_grad) {
    impl.autograd->accumulate_grad->outputs[0] = {impl.shape, impl.dtype, impl.storage->device};
  }
}

std::uint64_t Tensor::version() const { return get(impl_).storage->version.load(std::memory_order_relaxed); }
void Tensor::bump_version() const { get(impl_).storage->version.fetch_add(1, std::memory_order_relaxed); }

bool equal_bits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  NoGradGuard no_grad;
  const Tensor host_a = a.to(Device::cpu()).contiguous(), host_b = b.to(Device::cpu()).contiguous();
  return std::memcmp(host_a.data_ptr(), host_b.data_ptr(), static_cast<std::size_t>(a.nbytes())) == 0;
}

}  // namespace ergon
