// Copies between the host and a device, and between devices.

#include <cuda_runtime_api.h>

#include "core/cuda/check.h"
#include "core/cuda_backend.h"
#include "core/error.h"
#include "core/tensor_impl.h"

namespace ergon::detail::cuda {
namespace {

cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

void enqueue(const Tensor& destination, const Tensor& source, const Stream& stream) {
  DeviceGuard guard(stream.device());
  const auto bytes = static_cast<std::size_t>(source.nbytes());
  const Device from = source.device(), to = destination.device();
  if (from.is_cuda() && to.is_cuda()) {
    CUDA_CHECK(cudaMemcpyPeerAsync(destination.data_ptr(), to.index, source.data_ptr(), from.index, bytes,
                                   native(stream)));
  } else {
    CUDA_CHECK(cudaMemcpyAsync(destination.data_ptr(), source.data_ptr(), bytes,
                               to.is_cuda() ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost,
                               native(stream)));
  }
}

Event mark(const Stream& stream) {
  Event event;
  event.record(stream);
  return event;
}

// The copy stream starts after what computes or frees the operands; `computation` goes on after the copy
// where it writes the device's memory.
void copy_beside(const Tensor& destination, const Tensor& source, const Tensor& device_side,
                 const Tensor& host_side) {
  const Stream computation = current_stream(device_side.device()), copies = copy_stream(device_side.device());
  // A block allocated on the copy stream has nothing to wait for on the others.
  if (source.device().is_cuda() || device_side.impl()->storage->stream != copies)
    copies.wait(mark(computation));
  enqueue(destination, source, copies);
  if (destination.device().is_cuda()) computation.wait(mark(copies));
  device_side.record_stream(copies);
  device_side.record_stream(computation);
  host_side.record_stream(copies);
}

}  // namespace

void copy_across(const Tensor& destination, const Tensor& source, bool non_blocking) {
  if (source.numel() == 0) return;
  const Device from = source.device(), to = destination.device();
  if (from.is_cuda() && to.is_cuda()) {
    const Stream source_stream = current_stream(from), destination_stream = current_stream(to);
    source_stream.wait(mark(destination_stream));
    enqueue(destination, source, source_stream);
    destination_stream.wait(mark(source_stream));
    return;
  }
  const Tensor& device_side = to.is_cuda() ? destination : source;
  const Tensor& host_side = to.is_cuda() ? source : destination;
  if (non_blocking && host_side.is_pinned()) return copy_beside(destination, source, device_side, host_side);
  const Stream stream = current_stream(device_side.device());
  enqueue(destination, source, stream);
  stream.synchronize();
}

}  // namespace ergon::detail::cuda
