// Devices, their properties, errors.
#include <cstdio>
#include <cstring>

#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace {

bool exists(int device) { return device >= 0 && device < settings().devices; }

// An A100-SXM4-40GB.
void describe(cudaDeviceProp& p) {
  p = {};
  std::snprintf(p.name, sizeof p.name, "Simulated A100 (sm_80)");
  p.totalGlobalMem = kDeviceBytes;
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

}  // namespace

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
cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr attribute, int device) {
  if (!exists(device)) return failed(cudaErrorInvalidDevice);
  cudaDeviceProp p;
  describe(p);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *out = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxBlockDimX:
      *out = p.maxThreadsDim[0];
      break;
    case cudaDevAttrMaxBlockDimY:
      *out = p.maxThreadsDim[1];
      break;
    case cudaDevAttrMaxBlockDimZ:
      *out = p.maxThreadsDim[2];
      break;
    case cudaDevAttrMaxGridDimX:
      *out = p.maxGridSize[0];
      break;
    case cudaDevAttrMaxGridDimY:
      *out = p.maxGridSize[1];
      break;
    case cudaDevAttrMaxGridDimZ:
      *out = p.maxGridSize[2];
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *out = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *out = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *out = static_cast<int>(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *out = static_cast<int>(p.reservedSharedMemPerBlock);
      break;
    case cudaDevAttrTotalConstantMemory:
      *out = static_cast<int>(p.totalConstMem);
      break;
    case cudaDevAttrWarpSize:
      *out = p.warpSize;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *out = p.regsPerBlock;
      break;
    case cudaDevAttrMultiProcessorCount:
      *out = p.multiProcessorCount;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *out = p.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *out = p.maxBlocksPerMultiProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *out = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *out = p.minor;
      break;
    case cudaDevAttrL2CacheSize:
      *out = p.l2CacheSize;
      break;
    case cudaDevAttrClockRate:
      *out = 1410000;
      break;
    case cudaDevAttrMemoryClockRate:
      *out = 1215000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *out = p.memoryBusWidth;
      break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrStreamPrioritiesSupported:
      *out = 1;
      break;
    case cudaDevAttrIntegrated:
    case cudaDevAttrEccEnabled:
    case cudaDevAttrComputeMode:
    case cudaDevAttrClusterLaunch:
      *out = 0;
      break;
    default:
      std::fprintf(stderr, "simgpu: device attribute %d is not simulated\n", static_cast<int>(attribute));
      return failed(cudaErrorInvalidValue);
  }
  return failed(cudaSuccess);
}
cudaError_t cudaDeviceSynchronize() {
  Context::get().wait_all(current_device);
  return failed(cudaSuccess);
}
// Memory stays, unlike on hardware; what a failed kernel left behind is forgotten.
cudaError_t cudaDeviceReset() {
  Context& c = Context::get();
  c.wait_all(current_device);
  c.sticky = cudaSuccess;
  take_last_error(true);
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* out, int device, int peer) {
  return *out = device != peer && exists(peer), failed(cudaSuccess);
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  return failed(exists(peer) && peer != current_device ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceDisablePeerAccess(int) { return failed(cudaSuccess); }
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
  X(cudaErrorStreamCaptureUnjoined, "capturing stream has work that has not joined")

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
      return "cudaErrorUnknown";
  }
}

}  // extern "C"
