#pragma once

// Tensor: a cheap handle on strided storage. Copying a Tensor shares the data; clone() copies it. Names and
// semantics follow LibTorch where its users know them.
//
// Dimension arguments may be negative (counted from the end). Every method throws Error, naming the operation
// and the shapes, when its arguments do not fit.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iosfwd>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/allocator.h"
#include "core/device.h"
#include "core/dims.h"
#include "core/dtype.h"
#include "core/random.h"

namespace ergon {

class Tensor;
struct TensorImpl;
struct Storage;
class Stream;
namespace autograd {
class Node;
}

struct TensorOptions {
  DType dtype = DType::f32;
  Device device = Device::cpu();
  bool requires_grad = false;
};

class Tensor {
 public:
  Tensor() = default;  // undefined: defined() is false, every other method but that throws
  explicit Tensor(std::shared_ptr<TensorImpl> impl) : impl_(std::move(impl)) {}

  bool defined() const { return impl_ != nullptr; }

  // --- what it is ---
  const Shape& shape() const;
  const Strides& strides() const;  // in elements
  std::int64_t size(std::int64_t dim) const;
  std::int64_t stride(std::int64_t dim) const;
  int dim() const { return shape().size(); }
  std::int64_t numel() const;
  std::int64_t nbytes() const { return numel() * size_of(dtype()); }
  DType dtype() const;
  Device device() const;
  bool is_contiguous() const;
  bool is_pinned() const;  // in page-locked host memory?
  TensorOptions options() const { return {dtype(), device(), false}; }
  // Do both handles name the same tensor (not just equal values)?
  bool is_same(const Tensor& other) const { return impl_ == other.impl_; }

  // --- elements ---
  // The first element's address; T must match dtype() (checked).
  template <class T>
  T* data() const;
  void* data_ptr() const;
  // The value of a tensor of one element, converted to T (float, double, int64_t or bool).
  template <class T>
  T item() const;
  // All elements, row-major, converted to T.
  template <class T>
  std::vector<T> to_vector() const;

  // --- views: share storage, differentiable ---
  Tensor view(Shape shape) const;  // one size may be -1; throws unless the strides allow it without a copy
  Tensor transpose(std::int64_t dim0, std::int64_t dim1) const;
  Tensor permute(const Dims& order) const;
  Tensor slice(std::int64_t dim, std::int64_t start, std::int64_t end, std::int64_t step = 1) const;
  Tensor select(std::int64_t dim, std::int64_t index) const;  // drops `dim`
  Tensor operator[](std::int64_t index) const { return select(0, index); }
  Tensor expand(const Shape& shape) const;  // size-1 and new leading dimensions repeat with stride 0
  Tensor squeeze(std::int64_t dim) const;   // drops a dimension of size 1; no change for another size
  Tensor unsqueeze(std::int64_t dim) const;
  // The same data without gradient history.
  Tensor detach() const;

  // --- copies where needed, differentiable ---
  Tensor reshape(Shape shape) const;  // a view if the strides allow it, else a copy; one size may be -1
  Tensor flatten(std::int64_t start_dim = 0, std::int64_t end_dim = -1) const;
  Tensor contiguous() const;
  Tensor clone() const;
  Tensor to(DType dtype) const;
  // non_blocking: from pinned memory to a CUDA device, returns before the copy is done; it runs beside the
  // computation, and what is computed from the result waits for it. The source must stay as it is until then.
  Tensor to(Device device, bool non_blocking = false) const;
  // A copy in page-locked host memory, which CUDA devices read and write by themselves. Throws Error without
  // CUDA.
  Tensor pin_memory() const;

  // --- in place ---
  // source broadcasts to shape() and is converted to dtype(). non_blocking: between pinned memory and a CUDA
  // device, returns before the copy is done; wait (synchronize) before reading a result in host memory.
  Tensor& copy_(const Tensor& source, bool non_blocking = false);
  Tensor& fill_(double value);
  Tensor& zero_() { return fill_(0); }

  // --- autograd (see core/autograd.h) ---
  bool requires_grad() const;
  Tensor& set_requires_grad(bool requires_grad);  // leaves only
  bool is_leaf() const;
  // The accumulated gradient; undefined before the first backward.
  Tensor grad() const;
  void set_grad(Tensor grad);
  void zero_grad() { set_grad({}); }
  // Gradients of this tensor (one element, unless `gradient` is given) with respect to every leaf, added to
  // their grad(). Frees the graph unless retain_graph.
  void backward(const Tensor& gradient = {}, bool retain_graph = false) const;
  // Called with the gradient of this tensor once it is complete; a defined result replaces it.
  void register_hook(std::function<Tensor(const Tensor&)> hook) const;
  // For a leaf: called each time a backward has finished adding to its grad(). Data parallelism overlaps on
  // it.
  void register_post_accumulate_grad_hook(std::function<void(const Tensor&)> hook) const;

  // --- for the library and for modules ---
  // Lets this handle's tensor take over the storage, shape and dtype of `other`; gradient settings stay.
  void set_data(const Tensor& other);
  // Counts the in-place writes to the storage.
  std::uint64_t version() const;
  void bump_version() const;
  // Tells the allocator that `stream` uses the storage too, beside the one it was allocated on: freed memory
  // is used again only after both.
  void record_stream(const Stream& stream) const;
  const std::shared_ptr<TensorImpl>& impl() const { return impl_; }

 private:
  std::shared_ptr<TensorImpl> impl_;
};

// Names with tensors, in an order that means something: of registration, of a file.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// Shape, dtype and values; long dimensions are shortened.
std::string to_string(const Tensor& tensor);
std::ostream& operator<<(std::ostream& stream, const Tensor& tensor);

// --- factories ---
Tensor empty(const Shape& shape, const TensorOptions& options = {});  // undefined content
Tensor zeros(const Shape& shape, const TensorOptions& options = {});
Tensor ones(const Shape& shape, const TensorOptions& options = {});
Tensor full(const Shape& shape, double value, const TensorOptions& options = {});
Tensor empty_like(const Tensor& tensor);  // contiguous, same shape, dtype and device
Tensor zeros_like(const Tensor& tensor);
// start, start + step, ... below end.
Tensor arange(std::int64_t start, std::int64_t end, std::int64_t step = 1,
              const TensorOptions& options = {.dtype = DType::i64});
// Uniform in [0, 1).
Tensor rand(const Shape& shape, const TensorOptions& options = {},
            Generator& generator = default_generator());
// Standard normal (Box-Muller).
Tensor randn(const Shape& shape, const TensorOptions& options = {},
             Generator& generator = default_generator());
// Integers in [low, high).
Tensor randint(std::int64_t low, std::int64_t high, const Shape& shape,
               const TensorOptions& options = {.dtype = DType::i64},
               Generator& generator = default_generator());
// A copy of `values` in row-major order.
template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, const TensorOptions& options = {});
// A tensor over memory that `owner` keeps alive (a mapped file, say; null: the caller does); contiguous, on
// the CPU.
Tensor from_blob(void* data, const Shape& shape, DType dtype, std::shared_ptr<void> owner);

// --- joining and splitting, differentiable ---
Tensor cat(std::span<const Tensor> tensors, std::int64_t dim);
Tensor stack(std::span<const Tensor> tensors, std::int64_t dim);
inline Tensor cat(std::initializer_list<Tensor> tensors, std::int64_t dim) {
  return cat(std::span(tensors.begin(), tensors.size()), dim);
}
inline Tensor stack(std::initializer_list<Tensor> tensors, std::int64_t dim) {
  return stack(std::span(tensors.begin(), tensors.size()), dim);
}
// Views of consecutive pieces along `dim`; the sizes must add up to size(dim).
std::vector<Tensor> split(const Tensor& tensor, const std::vector<std::int64_t>& sizes, std::int64_t dim);
// `chunks` views of equal size; size(dim) must be a multiple of `chunks`.
std::vector<Tensor> chunk(const Tensor& tensor, std::int64_t chunks, std::int64_t dim);

// Do both tensors have the same shape, dtype and elements, bit for bit (NaN equals NaN)?
bool equal_bits(const Tensor& a, const Tensor& b);

}  // namespace ergon
