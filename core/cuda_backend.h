#pragma once

// What core/ asks of the CUDA runtime. core/cuda implements it; core/no_cuda stands in where the build has no
// CUDA. Indices are those of devices; every call leaves the thread's current device as it was.

#include <cstdint>
#include <span>
#include <string>

#include "core/stream.h"
#include "core/tensor.h"

namespace ergon::detail::cuda {

// Devices that this process can use; 0 also where there is no driver.
int device_count();
// Why device_count() is 0, for an error message.
std::string why_unavailable();

std::string device_name(int index);

// --- memory (bytes > 0) ---

// A block of the device's pool, for use on `stream` once what is on it now has finished; null when the device
// has none left.
void* allocate(const Stream& stream, std::int64_t bytes);
// Gives a block back: it is used again after what is on `stream`, and on every stream of `other_uses`, has
// finished.
void deallocate(const Stream& stream, void* block, std::span<const Stream> other_uses) noexcept;
// Bytes that the pool holds from the device now.
std::int64_t reserved_bytes(int index);
// Gives the pool's unused memory back to the device.
void trim(int index);
// Free and total bytes of the device.
struct DeviceMemory {
  std::int64_t free = 0;
  std::int64_t total = 0;
};
DeviceMemory device_memory(int index);

// Page-locked host memory, which the device reads and writes by itself; null when the system refuses.
void* allocate_pinned(std::int64_t bytes);
void free_pinned(void* block) noexcept;

// --- data: on the current stream of the CUDA tensor's device ---

// destination = source between devices (host and device, or two devices), both contiguous, of one dtype and
// shape. Unless host memory is pinned and non_blocking is set, a copy from or to the host has finished when
// the call returns.
void copy_across(const Tensor& destination, const Tensor& source, bool non_blocking);

// core/copy.h's functions for tensors on one CUDA device.
void copy(const Tensor& destination, const Tensor& source);
void accumulate(const Tensor& destination, const Tensor& source);
void fill(const Tensor& destination, double value);

// --- profilers ---

void push_range(const char* name);
void pop_range();

}  // namespace ergon::detail::cuda
