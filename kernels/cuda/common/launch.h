#pragma once

// What launchers need to know of the device and of where to put their work.

#include <cstdint>

#include <cuda_runtime_api.h>

#include "core/cuda/check.h"

namespace ergon::kernels::cuda {

// The current stream of the current device: kernels of an op go there.
cudaStream_t stream();

// Properties of the current device, asked for once.
struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;  // by opt-in
  int shared_bytes_per_multiprocessor = 0;
  int compute_capability = 0;  // 80 for sm_80
};
const DeviceLimits& device_limits();

// Lets `kernel` use `bytes` of dynamic shared memory a block, where that is above the 48 KiB that need no
// permission.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, std::int64_t bytes) {
  if (bytes > 48 * 1024) {
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
}

// Blocks for `items` with `per_block` each, at most `waves` times what the device holds at 2,048 threads a
// multiprocessor: kernels of grid-stride loops.
int grid_stride_blocks(std::int64_t items, std::int64_t per_block, int threads, int waves = 4);

}  // namespace ergon::kernels::cuda
