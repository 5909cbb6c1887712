#pragma once

// Memory behind tensors.

#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace ergon {

struct Storage;

// Bytes of tensors on one device. `reserved` also counts freed blocks that are kept for reuse.
struct MemoryStats {
  std::int64_t current = 0;        // bytes in use by tensors
  std::int64_t peak = 0;           // highest `current` since the start or reset_peak_memory
  std::int64_t reserved = 0;       // bytes held from the system
  std::int64_t peak_reserved = 0;  // highest `reserved` since the start or reset_peak_memory
};

MemoryStats memory_stats(Device device = Device::cpu());
void reset_peak_memory(Device device = Device::cpu());

// Gives cached blocks that no tensor uses back to the system.
void empty_cache(Device device = Device::cpu());

// Bytes of page-locked host memory (Tensor::pin_memory); `current` and `reserved` as above.
MemoryStats pinned_memory_stats();

// Caps `current` on a device; an allocation beyond it throws OutOfMemoryError. 0: no cap but the system's.
void set_memory_limit(std::int64_t bytes, Device device = Device::cpu());

namespace detail {

// Fill in storage.data (and holder, stream) with a block of storage.bytes (0 is allowed) of undefined
// content, aligned to 64 bytes (256 on CUDA); give it back. Throws OutOfMemoryError that says asked, in use,
// the limit or what the device has left, and the ops that hold most.
void allocate(Storage& storage);
void deallocate(Storage& storage) noexcept;

}  // namespace detail

}  // namespace ergon
