// Tensor's views, and cat, stack and split on them.

#include <algorithm>
#include <optional>

#include "core/autograd.h"
#include "core/copy.h"
#include "core/tensor.h"
#include "core/tensor_impl.h"

namespace ergon {
namespace detail {

Tensor make_view(const Tensor& base, const Shape& shape, const Strides& strides, std::int64_t offset) {
  const TensorImpl& from = *base.impl();
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = from.storage;
  impl->shape = shape;
  impl->strides = strides;
  impl->offset = offset;
  impl->dtype = from.dtype;
  impl->is_view = true;
  impl->view_version = base.version();
  return Tensor(std::move(impl));
}

Tensor joined_in_place(std::span<const Tensor> pieces, std::int64_t dim) {
  if (pieces.empty() || !pieces[0].defined() || pieces[0].dim() == 0) return {};
  const Tensor& first = pieces[0];
  const int along = wrap_dim(dim, first.dim(), "joined_in_place");
  Shape shape = first.shape();
  shape[along] = 0;
  for (const Tensor& piece : pieces) {
    if (!piece.defined() || piece.dim() != first.dim()) return {};
    Shape expected = first.shape();
    expected[along] = piece.shape()[along];
    if (piece.shape() != expected || piece.strides() != first.strides() || piece.dtype() != first.dtype()
        || piece.impl()->storage != first.impl()->storage
        || piece.impl()->offset != first.impl()->offset + shape[along] * first.strides()[along]) {
      return {};
    }
    shape[along] += piece.shape()[along];
  }
  return make_view(first, shape, first.strides(), first.impl()->offset);
}

}  // namespace detail

namespace {

// Replaces a -1 in `shape` so that it has `count` elements.
Shape infer_shape(Shape shape, std::int64_t count, const Shape& from, const char* op) {
  int unknown = -1;
  std::int64_t known = 1;
  for (int i = 0; i < shape.size(); ++i) {
    ERGON_CHECK(shape[i] >= -1, "[{}] shape {}: sizes must not be negative", op, shape);
    if (shape[i] == -1) {
      ERGON_CHECK(unknown < 0, "[{}] shape {}: only one size may be -1", op, shape);
      unknown = i;
    } else {
      known *= shape[i];
    }
  }
  if (unknown >= 0) {
    ERGON_CHECK(known != 0 && count % known == 0, "[{}] shape {} does not divide the {} elements of {}", op,
                shape, count, from);
    shape[unknown] = count / known;
  }
  ERGON_CHECK(numel(shape) == count, "[{}] shape {} has {} elements, the tensor {} has {}", op, shape,
              numel(shape), from, count);
  return shape;
}

// The strides that give `shape` over the same elements, if there are any.
std::optional<Strides> view_strides(const Tensor& tensor, const Shape& shape) {
  if (tensor.is_contiguous()) return contiguous_strides(shape);
  // Walk both shapes from the end; each run of merged old dimensions must hold whole new dimensions.
  Strides strides = Dims::filled(shape.size(), 0);
  int next = shape.size() - 1;
  std::int64_t run_stride = tensor.strides().back();
  std::int64_t run_count = 1, view_count = 1;
  for (int i = tensor.dim() - 1; i >= 0; --i) {
    run_count *= tensor.shape()[i];
    const bool run_ends =
        i == 0 || (tensor.shape()[i - 1] != 1 && tensor.strides()[i - 1] != run_count * run_stride);
    if (!run_ends) continue;
    while (next >= 0 && (view_count < run_count || shape[next] == 1)) {
      strides[next] = view_count * run_stride;
      view_count *= shape[next--];
    }
    if (view_count != run_count) return std::nullopt;
    if (i > 0) {
      run_stride = tensor.strides()[i - 1];
      run_count = view_count = 1;
    }
  }
  return next < 0 ? std::optional(strides) : std::nullopt;
}

// Records a view whose gradient is another view of the output's gradient.
template <class Undo>
Tensor record_view(const char* op, Tensor view, const Tensor& source, Undo undo) {
  return autograd::record(op, std::move(view), {source}, [undo](const Tensor& grad_output, const auto&) {
    return autograd::Gradients{undo(grad_output)};
  });
}

// The gradient of a view that takes some of the elements: zeros, with grad_output where the view was.
template <class View>
auto scatter_into_zeros(const Shape& shape, View view) {
  return [shape, view](const Tensor& grad_output) {
    Tensor grad = zeros(shape, grad_output.options());
    detail::copy(view(grad), grad_output);
    return grad;
  };
}

}  // namespace

Tensor Tensor::view(Shape target) const {
  target = infer_shape(target, numel(), shape(), "view");
  const std::optional<Strides> new_strides = view_strides(*this, target);
  ERGON_CHECK(new_strides.has_value(), "[view] shape {} with strides {} cannot be viewed as {}: use reshape",
              shape(), strides(), target);
  return record_view("view", detail::make_view(*this, target, *new_strides, impl_->offset), *this,
                     [from = shape()](const Tensor& grad) { return grad.reshape(from); });
}

Tensor Tensor::reshape(Shape target) const {
  target = infer_shape(target, numel(), shape(), "reshape");
  if (target == shape()) return *this;
  return view_strides(*this, target).has_value() ? view(target) : clone().view(target);
}

Tensor Tensor::flatten(std::int64_t start_dim, std::int64_t end_dim) const {
  if (dim() == 0) return reshape({1});
  const int first = wrap_dim(start_dim, dim(), "flatten"), last = wrap_dim(end_dim, dim(), "flatten");
  ERGON_CHECK(first <= last, "[flatten] start_dim {} is after end_dim {}", start_dim, end_dim);
  Shape target;
  for (int i = 0; i < dim(); ++i) {
    if (i > first && i <= last) {
      target.back() *= shape()[i];
    } else {
      target.push_back(shape()[i]);
    }
  }
  return reshape(target);
}

Tensor Tensor::transpose(std::int64_t dim0, std::int64_t dim1) const {
  const int a = wrap_dim(dim0, dim(), "transpose"), b = wrap_dim(dim1, dim(), "transpose");
  Shape new_shape = shape();
  Strides new_strides = strides();
  std::swap(new_shape[a], new_shape[b]);
  std::swap(new_strides[a], new_strides[b]);
  return record_view("transpose", detail::make_view(*this, new_shape, new_strides, impl_->offset), *this,
                     [a, b](const Tensor& grad) { return grad.transpose(a, b); });
}

Tensor Tensor::permute(const Dims& order) const {
  ERGON_CHECK(order.size() == dim(), "[permute] order {} for shape {}: expected {} dimensions", order,
              shape(), dim());
  Shape new_shape = shape();
  Strides new_strides = strides();
  Dims inverse = Dims::filled(dim(), -1);
  for (int i = 0; i < dim(); ++i) {
    const int from = wrap_dim(order[i], dim(), "permute");
    ERGON_CHECK(inverse[from] < 0, "[permute] order {} names dimension {} twice", order, from);
    inverse[from] = i;
    new_shape[i] = shape()[from];
    new_strides[i] = strides()[from];
  }
  return record_view("permute", detail::make_view(*this, new_shape, new_strides, impl_->offset), *this,
                     [inverse](const Tensor& grad) { return grad.permute(inverse); });
}

Tensor Tensor::slice(std::int64_t which, std::int64_t start, std::int64_t end, std::int64_t step) const {
  const int along = wrap_dim(which, dim(), "slice");
  const std::int64_t length = shape().empty() ? 0 : shape()[along];
  ERGON_CHECK(dim() > 0 && step > 0, "[slice] shape {}, step {}: expected a dimension and a positive step",
              shape(), step);
  const std::int64_t first = std::clamp<std::int64_t>(start < 0 ? start + length : start, 0, length);
  const std::int64_t last = std::clamp<std::int64_t>(end < 0 ? end + length : end, first, length);
  Shape new_shape = shape();
  Strides new_strides = strides();
  new_shape[along] = (last - first + step - 1) / step;
  new_strides[along] *= step;
  return record_view(
      "slice", detail::make_view(*this, new_shape, new_strides, impl_->offset + first * strides()[along]),
      *this,
      scatter_into_zeros(shape(), [=](const Tensor& grad) { return grad.slice(along, first, last, step); }));
}

Tensor Tensor::select(std::int64_t which, std::int64_t index) const {
  const int along = wrap_dim(which, dim(), "select");
  ERGON_CHECK(dim() > 0, "[select] the tensor has no dimensions");
  const std::int64_t length = shape()[along];
  ERGON_CHECK(index >= -length && index < length,
              "[select] index {} of dimension {} of shape {}: expected one in [{}, {})", index, along,
              shape(), -length, length);
  const std::int64_t position = index < 0 ? index + length : index;
  Shape new_shape = shape();
  Strides new_strides = strides();
  new_shape.erase(along);
  new_strides.erase(along);
  return record_view(
      "select", detail::make_view(*this, new_shape, new_strides, impl_->offset + position * strides()[along]),
      *this, scatter_into_zeros(shape(), [=](const Tensor& grad) { return grad.select(along, position); }));
}

Tensor Tensor::expand(const Shape& target) const {
  const int added = target.size() - dim();
  ERGON_CHECK(added >= 0, "[expand] shape {} to {}: expected at least {} dimensions", shape(), target, dim());
  Shape new_shape = target;
  Strides new_strides = Dims::filled(target.size(), 0);
  for (int i = 0; i < dim(); ++i) {
    std::int64_t& size = new_shape[added + i];
    if (size == -1) size = shape()[i];
    ERGON_CHECK(size == shape()[i] || shape()[i] == 1,
                "[expand] shape {} to {}: dimension {} has size {}, not 1", shape(), target, i, shape()[i]);
    new_strides[added + i] = size == shape()[i] ? strides()[i] : 0;
  }
  return record_view("expand", detail::make_view(*this, new_shape, new_strides, impl_->offset), *this,
                     [from = shape()](const Tensor& grad) { return detail::sum_to(grad, from); });
}

Tensor Tensor::squeeze(std::int64_t which) const {
  const int along = wrap_dim(which, dim(), "squeeze");
  return dim() > 0 && shape()[along] == 1 ? select(along, 0) : *this;
}

Tensor Tensor::unsqueeze(std::int64_t which) const {
  const int along = wrap_dim(which, dim() + 1, "unsqueeze");
  Shape new_shape = shape();
  Strides new_strides = strides();
  new_strides.insert(along, along < dim() ? new_shape[along] * new_strides[along] : 1);
  new_shape.insert(along, 1);
  return record_view("unsqueeze", detail::make_view(*this, new_shape, new_strides, impl_->offset), *this,
                     [along](const Tensor& grad) { return grad.select(along, 0); });
}

Tensor Tensor::detach() const {
  Tensor result = detail::make_view(*this, shape(), strides(), impl_->offset);
  result.impl_->is_view = impl_->is_view;
  return result;
}

Tensor cat(std::span<const Tensor> tensors, std::int64_t dim) {
  ERGON_CHECK(!tensors.empty(), "[cat] no tensors");
  const int along = wrap_dim(dim, tensors[0].dim(), "cat");
  Shape shape = tensors[0].shape();
  DType dtype = tensors[0].dtype();
  std::vector<std::int64_t> sizes;
  std::int64_t total = 0;
  for (const Tensor& tensor : tensors) {
    Shape expected = shape;
    if (tensor.dim() == shape.size() && tensor.dim() > 0) expected[along] = tensor.shape()[along];
    ERGON_CHECK(tensor.dim() > 0 && tensor.shape() == expected,
                "[cat] shapes {} and {} differ outside dimension {}", tensors[0].shape(), tensor.shape(),
                along);
    dtype = promote(dtype, tensor.dtype());
    sizes.push_back(tensor.shape()[along]);
    total += sizes.back();
  }
  shape[along] = total;
  Tensor result = empty(shape, {dtype, tensors[0].device()});
  std::vector<DType> dtypes;
  {
    NoGradGuard no_grad;
    std::int64_t start = 0;
    for (const Tensor& tensor : tensors) {
      const std::int64_t size = tensor.shape()[along];
      detail::copy(result.slice(along, start, start + size), tensor);
      dtypes.push_back(tensor.dtype());
      start += size;
    }
  }
  return autograd::record("cat", result, tensors,
                          [sizes, dtypes, along](const Tensor& grad_output, const auto&) {
                            autograd::Gradients grads = split(grad_output, sizes, along);
                            for (std::size_t i = 0; i < grads.size(); ++i) grads[i] = grads[i].to(dtypes[i]);
                            return grads;
                          });
}

Tensor stack(std::span<const Tensor> tensors, std::int64_t dim) {
  std::vector<Tensor> unsqueezed;
  for (const Tensor& tensor : tensors) unsqueezed.push_back(tensor.unsqueeze(dim));
  return cat(unsqueezed, dim);
}

std::vector<Tensor> split(const Tensor& tensor, const std::vector<std::int64_t>& sizes, std::int64_t dim) {
  const int along = wrap_dim(dim, tensor.dim(), "split");
  std::int64_t total = 0;
  for (std::int64_t size : sizes) total += size;
  ERGON_CHECK(total == tensor.size(along), "[split] sizes {} add up to {}: dimension {} of {} has {}",
              Dims(sizes), total, along, tensor.shape(), tensor.size(along));
  std::vector<Tensor> pieces;
  {
    NoGradGuard no_grad;
    std::int64_t start = 0;
    for (std::int64_t size : sizes) {
      pieces.push_back(tensor.slice(along, start, start + size));
      start += size;
    }
  }
  // One node for all pieces: their gradients are joined, where a node each would fill and add whole tensors.
  autograd::record("split", std::span(pieces), std::span(&tensor, 1),
                   [along](std::span<const Tensor> grad_outputs, const auto&) {
                     const Tensor joined = detail::joined_in_place(grad_outputs, along);
                     return autograd::Gradients{joined.defined() ? joined : cat(grad_outputs, along)};
                   });
  return pieces;
}

std::vector<Tensor> chunk(const Tensor& tensor, std::int64_t chunks, std::int64_t dim) {
  const std::int64_t size = tensor.size(dim);
  ERGON_CHECK(chunks > 0 && size % chunks == 0,
              "[chunk] dimension {} of {} has size {}: not a multiple of {}", dim, tensor.shape(), size,
              chunks);
  return split(tensor, std::vector<std::int64_t>(static_cast<std::size_t>(chunks), size / chunks), dim);
}

}  // namespace ergon
