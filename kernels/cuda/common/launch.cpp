#include "kernels/cuda/common/launch.h"

#include <algorithm>
#include <array>
#include <mutex>

#include "core/stream.h"

namespace ergon::kernels::cuda {
namespace {

int current_device() {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

DeviceLimits ask(int device) {
  DeviceLimits limits;
  int major = 0, minor = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&limits.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                    device));
  CUDA_CHECK(cudaDeviceGetAttribute(&limits.shared_bytes_per_multiprocessor,
                                    cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  limits.compute_capability = major * 10 + minor;
  return limits;
}

}  // namespace

cudaStream_t stream() {
  return static_cast<cudaStream_t>(current_stream(Device::cuda(current_device())).handle());
}

const DeviceLimits& device_limits() {
  constexpr int kMaxDevices = 64;
  static std::array<DeviceLimits, kMaxDevices> limits;
  static std::array<std::once_flag, kMaxDevices> asked;
  const auto device = static_cast<std::size_t>(current_device());
  std::call_once(asked.at(device), [&] { limits[device] = ask(static_cast<int>(device)); });
  return limits[device];
}

int grid_stride_blocks(std::int64_t items, std::int64_t per_block, int threads, int waves) {
  const std::int64_t wanted = (items + per_block - 1) / per_block;
  const std::int64_t resident = std::int64_t{device_limits().multiprocessors} * (2048 / threads);
  return static_cast<int>(std::clamp<std::int64_t>(wanted, 1, resident * waves));
}

}  // namespace ergon::kernels::cuda
