// Devices, their properties, errors.
#include <cstdio>
#include <cstring>

#include "memory.h"
#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace {

bool exists(int device) { return device >= 0 && device < settings().devices; }

}  // namespace

// An A100-SXM4-40GB.
void simgpu::describe(cudaDeviceProp& p) {
  p = {};
  std::snprintf(p.name, sizeof p.name, "Simulated A100 (sm_80)");
  p.totalGlobalMem = settings().memory_bytes;
  p.sharedMemPerBlock = 48 * 1024;
  p.sharedMemPerBlockOptin = kSharedBytesOptIn;
  p.sharedMemPerMultiprocessor = 164 * 1024;
  p.reservedSharedMemPerBlock = 1024;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiProcessor = 2048;
  p.maxBlocksPerMultiProcessor = 32;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.totalConstMem = 64 * 1024;
  p.major = 8;
  p.multiProcessorCount = kMultiprocessors;
  p.memPitch = 0x7fffffff;
  p.textureAlignment = 512;
  p.l2CacheSize = 40 * 1024 * 1024;
  p.memoryBusWidth = 5120;
  p.unifiedAddressing = p.managedMemory = p.concurrentManagedAccess = p.concurrentKernels = 1;
  p.asyncEngineCount = 3;
  p.cooperativeLaunch = p.canMapHostMemory = p.memoryPoolsSupported = p.streamPrioritiesSupported = 1;
}

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) { return *count = settings().devices, failed(cudaSuccess); }
cudaError_t cudaGetDevice(int* device) { return *device = current_device, failed(cudaSuccess); }
cudaError_t cudaSetDevice(int device) {
  if (!exists(device)) return failed(cudaErrorInvalidDevice);
  current_device = device;
  return failed(cudaSuccess);
}
cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
  return failed(exists(device) ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
  if (!exists(device)) return failed(cudaErrorInvalidDevice);
  describe(*out);
  return failed(cudaSuccess);
}
cudaError_t cudaDeviceSynchronize() {
  Context& c = Context::get();
  if (const cudaError_t e = c.allowed_in_capture(true); e != cudaSuccess) return failed(e);
  c.wait_all(current_device);
  return failed(cudaSuccess);
}
// The device's memory is gone, its variables are as at the start; what a failed kernel left is forgotten.
cudaError_t cudaDeviceReset() {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  c.wait_all(current_device);
  for (const Allocation& a : memory::live_allocations()) {
    if (a.device == current_device && a.kind != MemoryKind::kVariable)
      memory::release(reinterpret_cast<void*>(a.base));
  }
  pools_reset(current_device);
  memory::peers[current_device] = 0;
  for (const auto& binary : c.binaries) binary->modules.erase(current_device);
  c.sticky = cudaSuccess;
  take_last_error(true);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  if (!exists(device)) return failed(cudaErrorInvalidDevice);
  return std::snprintf(text, static_cast<size_t>(bytes), "0000:%02x:00.0", device), failed(cudaSuccess);
}
cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* text) {
  unsigned domain = 0, bus = 0;
  if (std::sscanf(text, "%x:%x", &domain, &bus) != 2 || domain != 0 || !exists(static_cast<int>(bus)))
    return failed(cudaErrorInvalidValue);
  return *device = static_cast<int>(bus), failed(cudaSuccess);
}
// How a host thread waits makes no difference here.
cudaError_t cudaSetDeviceFlags(unsigned) { return failed(cudaSuccess); }
cudaError_t cudaGetDeviceFlags(unsigned* flags) { return *flags = cudaDeviceMapHost, failed(cudaSuccess); }
cudaError_t cudaProfilerStart() { return failed(cudaSuccess); }
cudaError_t cudaProfilerStop() { return failed(cudaSuccess); }
// There is no driver: no symbol of it is found.
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  *function = nullptr;
  if (status == nullptr) return failed(cudaErrorSymbolNotFound);
  return *status = cudaDriverEntryPointSymbolNotFound, failed(cudaSuccess);
}
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* status) {
  return cudaGetDriverEntryPointByVersion(symbol, function, CUDART_VERSION, flags, status);
}
cudaError_t cudaDeviceCanAccessPeer(int* out, int device, int peer) {
  return *out = device != peer && exists(peer), failed(cudaSuccess);
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  const std::lock_guard lock(Context::get().mutex);
  if (!exists(peer) || peer == current_device) return failed(cudaErrorInvalidDevice);
  if (flags != 0) return failed(cudaErrorInvalidValue);
  u64 &enabled = memory::peers[current_device], bit = u64{1} << peer;
  if ((enabled & bit) != 0) return failed(cudaErrorPeerAccessAlreadyEnabled);
  return enabled |= bit, failed(cudaSuccess);
}
cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  const std::lock_guard lock(Context::get().mutex);
  if (!exists(peer)) return failed(cudaErrorInvalidDevice);
  u64 &enabled = memory::peers[current_device], bit = u64{1} << peer;
  if ((enabled & bit) == 0) return failed(cudaErrorPeerAccessNotEnabled);
  Context::get().wait_all(current_device);
  return enabled &= ~bit, failed(cudaSuccess);
}
cudaError_t cudaDeviceGetP2PAttribute(int* value, cudaDeviceP2PAttr attribute, int device, int peer) {
  if (!exists(device) || !exists(peer) || device == peer) return failed(cudaErrorInvalidDevice);
  return *value = attribute != cudaDevP2PAttrPerformanceRank
                  && attribute != cudaDevP2PAttrCudaArrayAccessSupported,
         failed(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, failed(cudaSuccess); }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, failed(cudaSuccess); }
cudaError_t cudaGetLastError() { return take_last_error(true); }
cudaError_t cudaPeekAtLastError() { return take_last_error(false); }

#define SIMGPU_ERRORS(X)                                                                         \
  X(cudaSuccess, "no error")                                                                     \
  X(cudaErrorInvalidValue, "invalid argument")                                                   \
  X(cudaErrorMemoryAllocation, "out of memory")                                                  \
  X(cudaErrorInvalidConfiguration, "invalid configuration argument")                             \
  X(cudaErrorInvalidPitchValue, "invalid pitch argument")                                        \
  X(cudaErrorInvalidSymbol, "invalid device symbol")                                             \
  X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                        \
  X(cudaErrorMissingConfiguration, "kernel launch without a configuration")                      \
  X(cudaErrorInvalidDeviceFunction, "invalid device function")                                   \
  X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                     \
  X(cudaErrorInvalidDevice, "invalid device ordinal")                                            \
  X(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device") \
  X(cudaErrorInvalidPtx, "a PTX compilation failed")                                             \
  X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                   \
  X(cudaErrorIllegalState, "the operation cannot be performed in the present state")             \
  X(cudaErrorNotReady, "device not ready")                                                       \
  X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                         \
  X(cudaErrorMisalignedAddress, "misaligned address")                                            \
  X(cudaErrorAssert, "device-side assert triggered")                                             \
  X(cudaErrorLaunchFailure, "unspecified launch failure")                                        \
  X(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch")                 \
  X(cudaErrorNotSupported, "operation not supported")                                            \
  X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")       \
  X(cudaErrorStreamCaptureMerge, "operation would merge two captures")                           \
  X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the stream in which it began")    \
  X(cudaErrorStreamCaptureUnjoined, "capturing stream has work that has not joined")             \
  X(cudaErrorStreamCaptureInvalidated, "a forbidden call has made the capture invalid")          \
  X(cudaErrorStreamCaptureImplicit, "the legacy stream would depend on a capturing stream")      \
  X(cudaErrorStreamCaptureIsolation, "a captured stream may not wait for work outside")          \
  X(cudaErrorStreamCaptureWrongThread, "the capture was begun by another thread")                \
  X(cudaErrorCapturedEvent, "operation not permitted on an event of a capture")                  \
  X(cudaErrorGraphExecUpdateFailure, "the graph does not fit the one that is to be updated")     \
  X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                    \
  X(cudaErrorHostMemoryAlreadyRegistered, "the memory is registered or page-locked already")     \
  X(cudaErrorHostMemoryNotRegistered, "the memory is not registered")                            \
  X(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled")                         \
  X(cudaErrorPeerAccessNotEnabled, "peer access has not been enabled")                           \
  X(cudaErrorUnsupportedLimit, "the limit is not known to the device")                           \
  X(cudaErrorSymbolNotFound, "named symbol not found")                                           \
  X(cudaErrorInsufficientDriver, "the driver is older than the runtime")                         \
  X(cudaErrorInitializationError, "initialization error")                                        \
  X(cudaErrorUnknown, "unknown error")

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define SIMGPU_CASE(name, text) \
  case name:                    \
    return text;
    SIMGPU_ERRORS(SIMGPU_CASE)
#undef SIMGPU_CASE
    default:
      return "unrecognized error code";
  }
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define SIMGPU_CASE(name, text) \
  case name:                    \
    return #name;
    SIMGPU_ERRORS(SIMGPU_CASE)
#undef SIMGPU_CASE
    default:
      return "unrecognized error code";
  }
}

}  // extern "C"
