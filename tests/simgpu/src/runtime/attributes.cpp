// Attributes and limits of devices. One that CUDA knows and the simulator does not
// answer is named and refused with cudaErrorNotSupported; what CUDA does not know either is
// cudaErrorInvalidValue.
#include <map>
#include <string>

#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace {

// X(enumerator, value); `p` are the properties.
#define SIMGPU_DEVICE_ATTRIBUTES(X)                                 \
  X(MaxThreadsPerBlock, p.maxThreadsPerBlock)                       \
  X(MaxBlockDimX, p.maxThreadsDim[0])                               \
  X(MaxBlockDimY, p.maxThreadsDim[1])                               \
  X(MaxBlockDimZ, p.maxThreadsDim[2])                               \
  X(MaxGridDimX, p.maxGridSize[0])                                  \
  X(MaxGridDimY, p.maxGridSize[1])                                  \
  X(MaxGridDimZ, p.maxGridSize[2])                                  \
  X(MaxSharedMemoryPerBlock, p.sharedMemPerBlock)                   \
  X(MaxSharedMemoryPerBlockOptin, p.sharedMemPerBlockOptin)         \
  X(MaxSharedMemoryPerMultiprocessor, p.sharedMemPerMultiprocessor) \
  X(ReservedSharedMemoryPerBlock, p.reservedSharedMemPerBlock)      \
  X(TotalConstantMemory, p.totalConstMem)                           \
  X(WarpSize, p.warpSize)                                           \
  X(MaxPitch, p.memPitch)                                           \
  X(MaxRegistersPerBlock, p.regsPerBlock)                           \
  X(MaxRegistersPerMultiprocessor, p.regsPerMultiprocessor)         \
  X(MultiProcessorCount, p.multiProcessorCount)                     \
  X(MaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor)     \
  X(MaxBlocksPerMultiprocessor, p.maxBlocksPerMultiProcessor)       \
  X(ComputeCapabilityMajor, p.major)                                \
  X(ComputeCapabilityMinor, p.minor)                                \
  X(L2CacheSize, p.l2CacheSize)                                     \
  X(ClockRate, 1410000)                                             \
  X(MemoryClockRate, 1215000)                                       \
  X(GlobalMemoryBusWidth, p.memoryBusWidth)                         \
  X(TextureAlignment, p.textureAlignment)                           \
  X(AsyncEngineCount, p.asyncEngineCount)                           \
  X(CanMapHostMemory, p.canMapHostMemory)                           \
  X(PciBusId, device)                                               \
  X(PciDeviceId, 0)                                                 \
  X(PciDomainId, 0)                                                 \
  X(SingleToDoublePrecisionPerfRatio, 2)                            \
  X(GpuOverlap, 1)                                                  \
  X(CooperativeLaunch, 1)                                           \
  X(UnifiedAddressing, 1)                                           \
  X(ManagedMemory, 1)                                               \
  X(ConcurrentManagedAccess, 1)                                     \
  X(MemoryPoolsSupported, 1)                                        \
  X(ConcurrentKernels, 1)                                           \
  X(StreamPrioritiesSupported, 1)                                   \
  X(HostRegisterSupported, 1)                                       \
  X(GlobalL1CacheSupported, 1)                                      \
  X(LocalL1CacheSupported, 1)                                       \
  X(Integrated, 0)                                                  \
  X(EccEnabled, 0)                                                  \
  X(ComputeMode, 0)                                                 \
  X(KernelExecTimeout, 0)                                           \
  X(TccDriver, 0)                                                   \
  X(IsMultiGpuBoard, 0)                                             \
  X(PageableMemoryAccess, 0)                                        \
  X(ClusterLaunch, 0)

// X(enumerator), of what is not simulated.
// clang-format off
#define SIMGPU_OTHER_DEVICE_ATTRIBUTES(X)                                                                             \
  X(MaxTexture1DWidth) X(MaxTexture2DWidth) X(MaxTexture2DHeight) X(MaxTexture3DWidth) X(MaxTexture3DHeight)          \
  X(MaxTexture3DDepth) X(MaxTexture2DLayeredWidth) X(MaxTexture2DLayeredHeight) X(MaxTexture2DLayeredLayers)          \
  X(SurfaceAlignment) X(MaxTexture1DLayeredWidth) X(MaxTexture1DLayeredLayers) X(MaxTexture2DGatherWidth)             \
  X(MaxTexture2DGatherHeight) X(MaxTexture3DWidthAlt) X(MaxTexture3DHeightAlt) X(MaxTexture3DDepthAlt)                \
  X(TexturePitchAlignment) X(MaxTextureCubemapWidth) X(MaxTextureCubemapLayeredWidth)                                 \
  X(MaxTextureCubemapLayeredLayers) X(MaxSurface1DWidth) X(MaxSurface2DWidth) X(MaxSurface2DHeight)                   \
  X(MaxSurface3DWidth) X(MaxSurface3DHeight) X(MaxSurface3DDepth) X(MaxSurface1DLayeredWidth)                         \
  X(MaxSurface1DLayeredLayers) X(MaxSurface2DLayeredWidth) X(MaxSurface2DLayeredHeight) X(MaxSurface2DLayeredLayers)  \
  X(MaxSurfaceCubemapWidth) X(MaxSurfaceCubemapLayeredWidth) X(MaxSurfaceCubemapLayeredLayers)                        \
  X(MaxTexture1DLinearWidth) X(MaxTexture2DLinearWidth) X(MaxTexture2DLinearHeight) X(MaxTexture2DLinearPitch)        \
  X(MaxTexture2DMipmappedWidth) X(MaxTexture2DMipmappedHeight) X(MaxTexture1DMipmappedWidth) X(MultiGpuBoardGroupID)  \
  X(HostNativeAtomicSupported) X(ComputePreemptionSupported) X(CanUseHostPointerForRegisteredMem)                     \
  X(CanFlushRemoteWrites) X(PageableMemoryAccessUsesHostPageTables) X(DirectManagedMemAccessFromHost)                 \
  X(MaxPersistingL2CacheSize) X(MaxAccessPolicyWindowSize) X(SparseCudaArraySupported)                                \
  X(HostRegisterReadOnlySupported) X(TimelineSemaphoreInteropSupported) X(GPUDirectRDMASupported)                     \
  X(GPUDirectRDMAFlushWritesOptions) X(GPUDirectRDMAWritesOrdering) X(MemoryPoolSupportedHandleTypes)                 \
  X(DeferredMappingCudaArraySupported) X(IpcEventSupport) X(MemSyncDomainCount) X(NumaConfig) X(NumaId)               \
  X(MpsEnabled) X(HostNumaId) X(D3D12CigSupported) X(VulkanCigSupported) X(GpuPciDeviceId) X(GpuPciSubsystemId)       \
  X(HostNumaMemoryPoolsSupported) X(HostNumaMultinodeIpcSupported) X(HostMemoryPoolsSupported)                        \
  X(OnlyPartialHostNativeAtomicSupported)
// clang-format on

std::map<cudaLimit, size_t>& limits() {  // as the CUDA programming guide gives them before they are set
  static std::map<cudaLimit, size_t> values{
      {cudaLimitStackSize, 1024}, {cudaLimitPrintfFifoSize, 1 << 20}, {cudaLimitMallocHeapSize, 8 << 20}};
  return values;
}

}  // namespace

extern "C" {

cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= settings().devices) return failed(cudaErrorInvalidDevice);
  cudaDeviceProp p;
  describe(p);
  switch (attribute) {
#define SIMGPU_ANSWER(name, value) \
  case cudaDevAttr##name:          \
    return *out = static_cast<int>(value), failed(cudaSuccess);
    SIMGPU_DEVICE_ATTRIBUTES(SIMGPU_ANSWER)
#undef SIMGPU_ANSWER
#define SIMGPU_REFUSE(name) SIMGPU_NOT_SIMULATED(cudaDevAttr##name)
    SIMGPU_OTHER_DEVICE_ATTRIBUTES(SIMGPU_REFUSE)
#undef SIMGPU_REFUSE
    default:
      return failed(cudaErrorInvalidValue);
  }
}

// Printf and stacks have room enough whatever is asked for.
cudaError_t cudaDeviceSetLimit(cudaLimit limit, size_t bytes) {
  if (limits().contains(limit)) return limits()[limit] = bytes, failed(cudaSuccess);
  size_t present;
  return cudaDeviceGetLimit(&present, limit);
}
cudaError_t cudaDeviceGetLimit(size_t* bytes, cudaLimit limit) {
  if (const auto found = limits().find(limit); found != limits().end())
    return *bytes = found->second, failed(cudaSuccess);
  switch (limit) {
    SIMGPU_NOT_SIMULATED(cudaLimitDevRuntimeSyncDepth)
    SIMGPU_NOT_SIMULATED(cudaLimitDevRuntimePendingLaunchCount)
    SIMGPU_NOT_SIMULATED(cudaLimitMaxL2FetchGranularity)
    SIMGPU_NOT_SIMULATED(cudaLimitPersistingL2CacheSize)
    default:
      return failed(cudaErrorUnsupportedLimit);
  }
}

}  // extern "C"
