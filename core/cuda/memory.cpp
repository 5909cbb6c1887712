// Devices, their memory pools and page-locked memory.

#include <array>
#include <limits>
#include <mutex>

#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include "core/cuda/check.h"
#include "core/cuda_backend.h"
#include "core/error.h"

namespace ergon::detail::cuda {
namespace {

cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

struct Found {
  int count = 0;
  std::string why;
};

const Found& found() {
  static const Found result = [] {
    Found devices;
    const cudaError_t status = cudaGetDeviceCount(&devices.count);
    if (status != cudaSuccess) {
      cudaGetLastError();
      devices = {0, fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status))};
    } else if (devices.count == 0) {
      devices.why = "no CUDA device was found";
    }
    return devices;
  }();
  return result;
}

// The device's default pool, told once to keep freed memory: giving it back at every synchronisation costs
// more than all else.
cudaMemPool_t pool_of(int index) {
  constexpr std::size_t kMaxDevices = 64;
  static std::array<std::once_flag, kMaxDevices> asked;
  static std::array<cudaMemPool_t, kMaxDevices> pools{};
  const auto slot = static_cast<std::size_t>(index);
  std::call_once(asked.at(slot), [&] {
    CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pools[slot], index));
    std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
    CUDA_CHECK(cudaMemPoolSetAttribute(pools[slot], cudaMemPoolAttrReleaseThreshold, &keep));
  });
  return pools[slot];
}

}  // namespace

int device_count() { return found().count; }
std::string why_unavailable() { return found().why; }

std::string device_name(int index) {
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return properties.name;
}

void* allocate(const Stream& stream, std::int64_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMallocFromPoolAsync(&block, static_cast<std::size_t>(bytes),
                                                     pool_of(stream.device().index), native(stream));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  CUDA_CHECK(status);
  return block;
}

void deallocate(const Stream& stream, void* block, std::span<const Stream> other_uses) noexcept {
  try {
    for (const Stream& use : other_uses) {
      Event finished;
      finished.record(use);
      stream.wait(finished);
    }
  } catch (const Error&) {
    // A device that has failed says so at the next call that can throw.
  }
  cudaFreeAsync(block, native(stream));
}

std::int64_t reserved_bytes(int index) {
  std::uint64_t bytes = 0;
  CUDA_CHECK(cudaMemPoolGetAttribute(pool_of(index), cudaMemPoolAttrReservedMemCurrent, &bytes));
  return static_cast<std::int64_t>(bytes);
}

void trim(int index) { CUDA_CHECK(cudaMemPoolTrimTo(pool_of(index), 0)); }

DeviceMemory device_memory(int index) {
  DeviceGuard guard(Device::cuda(index));
  std::size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

void* allocate_pinned(std::int64_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaHostAlloc(&block, static_cast<std::size_t>(bytes), cudaHostAllocPortable);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  CUDA_CHECK(status);
  return block;
}

void free_pinned(void* block) noexcept { cudaFreeHost(block); }

void push_range(const char* name) { nvtxRangePushA(name); }
void pop_range() { nvtxRangePop(); }

}  // namespace ergon::detail::cuda
