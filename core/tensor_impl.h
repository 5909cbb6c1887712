#pragma once

// What a Tensor handle points at. For core/ and for code that builds tensors without a factory; ops use
// Tensor.

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "core/stream.h"
#include "core/tensor.h"

namespace ergon {

struct Storage {
  // Allocates, on a CUDA device for use on the current stream. pinned: page-locked host memory.
  Storage(Device storage_device, std::int64_t storage_bytes, bool storage_pinned = false);
  Storage(void* blob, std::int64_t blob_bytes,
          std::shared_ptr<void> blob_owner);  // CPU memory of somebody else
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Device device;
  std::int64_t bytes = 0;
  void* data = nullptr;
  bool pinned = false;
  const char* holder = "no op";    // the op that allocated it
  Stream stream;                   // that it was allocated on
  std::vector<Stream> other_uses;  // whose work must finish before the block is used again
  bool borrowed = false;           // memory of somebody else, which `owner` keeps alive
  std::shared_ptr<void> owner;
  std::atomic<std::uint64_t> version = 0;  // in-place writes so far
};

// Present on tensors that take part in differentiation.
struct AutogradMeta {
  bool requires_grad = false;                       // of a leaf, as the user set it
  Tensor grad;                                      // of a leaf
  std::shared_ptr<autograd::Node> grad_fn;          // that computed this tensor; null for a leaf
  int output_index = 0;                             // which output of grad_fn
  std::shared_ptr<autograd::Node> accumulate_grad;  // of a leaf: made on first use
};

struct TensorImpl : std::enable_shared_from_this<TensorImpl> {
  std::shared_ptr<Storage> storage;
  Shape shape;
  Strides strides;
  std::int64_t offset = 0;  // of the first element, in elements
  DType dtype = DType::f32;
  bool is_view = false;
  std::uint64_t view_version = 0;  // storage version when this view was made
  std::unique_ptr<AutogradMeta> autograd;

  AutogradMeta& autograd_meta() {
    if (!autograd) autograd = std::make_unique<AutogradMeta>();
    return *autograd;
  }
};

namespace detail {

// A view of `base` without gradient history.
Tensor make_view(const Tensor& base, const Shape& shape, const Strides& strides, std::int64_t offset);
// The tensor of which these are the pieces along `dim`, without a copy, if they lie side by side in one
// storage; else an undefined tensor. Not recorded for the backward.
Tensor joined_in_place(std::span<const Tensor> pieces, std::int64_t dim);

}  // namespace detail

}  // namespace ergon
