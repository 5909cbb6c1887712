// Registration by host code, launches, attributes of kernels.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <span>

#include "runtime/context.h"
#include "runtime/fat_binary.h"
#include "settings.h"

using namespace simgpu;

namespace {

struct PendingCall {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<PendingCall> pending_calls;

Function* find_function(const void* symbol) {
  Context& c = Context::get();
  const auto found = c.functions.find(symbol);
  if (found != c.functions.end()) return &found->second;
  for (auto& [key, function] : c.functions) {
    if (&function == symbol) return &function;  // a cudaKernel_t or cudaFunction_t
  }
  return nullptr;
}

cudaError_t launch(Function* function, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t handle,
                   bool cooperative) {
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  if (context.sticky != cudaSuccess) return failed(context.sticky);
  if (function == nullptr) return failed(cudaErrorInvalidDeviceFunction);
  Stream& stream = context.stream(handle);
  if (stream.device != current_device) return failed(cudaErrorInvalidResourceHandle);
  cudaError_t error;
  Kernel* kernel = context.kernel(*function, stream.device, error);
  if (kernel == nullptr) {
    context.sticky = error;
    return failed(error);
  }
  const u64 threads = u64{block.x} * block.y * block.z;
  u32 static_shared = 0;
  try {
    static_shared = kernel->static_shared_bytes();
  } catch (const PtxError& e) {
    std::fprintf(stderr, "simgpu: kernel %s: %s\n", demangled(function->name).c_str(), e.what());
    return failed(context.sticky = cudaErrorInvalidPtx);
  }
  if (threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64 || grid.x == 0
      || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    return failed(cudaErrorInvalidConfiguration);
  }
  if (threads > kernel->max_threads_per_block()) return failed(cudaErrorInvalidValue);
  const int registers = registers_of(*function);
  if ((static_cast<u64>(registers) * 32 + 255) / 256 * 256 * ((threads + 31) / 32) > 65536)
    return failed(cudaErrorLaunchOutOfResources);
  if (shared > static_cast<size_t>(function->dynamic_shared_limit)
      || static_shared + shared > static_cast<size_t>(kSharedBytesOptIn))
    return failed(cudaErrorInvalidValue);
  const u64 blocks = u64{grid.x} * grid.y * grid.z;
  if (cooperative
      && blocks > static_cast<u64>(resident_blocks(*kernel, registers, static_cast<int>(threads), shared))
                      * kMultiprocessors) {
    return failed(cudaErrorCooperativeLaunchTooLarge);
  }
  std::vector<u8> params(kernel->param_bytes());
  size_t index = 0;
  for (const KernelParam& p : kernel->params()) std::memcpy(&params[p.offset], args[index++], p.size);
  LaunchConfig config;
  config.grid = {grid.x, grid.y, grid.z};
  config.block = {block.x, block.y, block.z};
  config.dynamic_shared_bytes = static_cast<u32>(shared);
  config.cooperative = cooperative;
  config.device = stream.device;
  const auto run = [function, config, params = std::move(params)] {
    Context::get().launch(*function, config, params);
  };
  const cudaError_t submitted = context.submit(stream, WorkKind::kKernel, run);
  // A fault of this very launch is asynchronous: the next call reports it.
  return submitted == cudaSuccess ? cudaSuccess : failed(submitted);
}

cudaError_t read_attribute(const cudaLaunchAttribute& a, bool& cooperative) {
  const auto& cluster = a.val.clusterDim;
  switch (a.id) {
    case cudaLaunchAttributeCooperative:
      cooperative = a.val.cooperative != 0;
      return cudaSuccess;
    case cudaLaunchAttributeClusterDimension:
      if (cluster.x * cluster.y * cluster.z == 1) return cudaSuccess;
      std::fprintf(stderr, "simgpu: a cluster of (%u, %u, %u) blocks: sm_80 has no clusters\n", cluster.x,
                   cluster.y, cluster.z);
      return failed(cudaErrorNotSupported);
    // Wishes, and leave to begin early, which nothing has to make use of.
    case cudaLaunchAttributeIgnore:
    case cudaLaunchAttributePriority:
    case cudaLaunchAttributeAccessPolicyWindow:
    case cudaLaunchAttributePreferredSharedMemoryCarveout:
    case cudaLaunchAttributeProgrammaticStreamSerialization:
      return cudaSuccess;
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributeClusterSchedulingPolicyPreference)
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributeProgrammaticEvent)
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributeMemSyncDomainMap)
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributeMemSyncDomain)
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributePreferredClusterDimension)
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributeLaunchCompletionEvent)
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributeDeviceUpdatableKernelNode)
      SIMGPU_NOT_SIMULATED(cudaLaunchAttributeNvlinkUtilCentricScheduling)
    default:
      return failed(cudaErrorInvalidValue);
  }
}

Kernel* kernel_of(const void* symbol, cudaError_t& error) {
  Function* function = find_function(symbol);
  error = cudaErrorInvalidDeviceFunction;
  return function == nullptr ? nullptr : Context::get().kernel(*function, current_device, error);
}

}  // namespace

namespace simgpu {

int registers_of(const Function& function) {
  const auto found = function.binary->registers.find(function.name);
  return found == function.binary->registers.end() ? 0 : found->second;
}

// 2,048 threads, 64 warps, 32 blocks, 65,536 registers given out to warps by 256, and 164 KiB of shared
// memory by 128 bytes, 1 KiB of it reserved for each block.
int resident_blocks(const Kernel& kernel, int registers, int threads, size_t dynamic_shared) {
  const int warps = (threads + 31) / 32;
  if (warps == 0) return 0;
  const size_t shared = (kernel.static_shared_bytes() + dynamic_shared + 1024 + 127) / 128 * 128;
  const int by_shared = static_cast<int>(164 * 1024 / shared);
  const int by_registers = registers == 0 ? 32 : 65536 / ((registers * 32 + 255) / 256 * 256) / 4 * 4 / warps;
  return std::min({64 / warps, 32, by_shared, by_registers});
}

}  // namespace simgpu

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  Context& context = Context::get();
  auto binary = std::make_unique<FatBinary>();
  try {
    binary->ptx = extract_ptx(wrapper);
    binary->registers = extract_registers(wrapper);
  } catch (const PtxError& e) {
    binary->problem = e.what();  // told when a kernel of it is launched
  }
  context.binaries.push_back(std::move(binary));
  return reinterpret_cast<void**>(context.binaries.back().get());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  Context::get().functions[host] = {reinterpret_cast<FatBinary*>(handle), name};
}
void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, size_t, int, int) {
  Context::get().symbols[host] = {reinterpret_cast<FatBinary*>(handle), name};
}
// The instance on the first device is what the host sees.
void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int, size_t, int, int) {
  auto* const binary = reinterpret_cast<FatBinary*>(handle);
  Context::get().symbols[host] = {binary, name};
  try {
    if (!binary->problem.empty()) throw PtxError(binary->problem);
    auto& module = binary->modules[0];
    if (module == nullptr) module = parse_module(std::string(binary->ptx), 0);
    if (const Variable* v = module->find_variable(name)) *host = reinterpret_cast<void*>(v->address);
  } catch (const PtxError& e) {
    std::fprintf(stderr, "simgpu: __managed__ variable %s: %s\n", name, e.what());
  }
  if (settings().devices > 1)
    std::fprintf(stderr, "simgpu: __managed__ variable %s: its instances on several devices are apart\n",
                 name);
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pending_calls.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (pending_calls.empty()) return failed(cudaErrorMissingConfiguration);
  const PendingCall call = pending_calls.back();
  pending_calls.pop_back();
  *grid = call.grid;
  *block = call.block;
  *shared = call.shared;
  *static_cast<cudaStream_t*>(stream) = call.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* host) {
  Function* function = find_function(host);
  *out = reinterpret_cast<cudaKernel_t>(function);
  return function != nullptr ? cudaSuccess : failed(cudaErrorInvalidDeviceFunction);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args, size_t shared,
                               cudaStream_t stream) {
  return launch(reinterpret_cast<Function*>(kernel), grid, block, args, shared, stream, false);
}

cudaError_t cudaLaunchKernel(const void* symbol, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t stream) {
  return launch(find_function(symbol), grid, block, args, shared, stream, false);
}
cudaError_t cudaLaunchCooperativeKernel(const void* symbol, dim3 grid, dim3 block, void** args, size_t shared,
                                        cudaStream_t stream) {
  return launch(find_function(symbol), grid, block, args, shared, stream, true);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* symbol, void** args) {
  bool cooperative = false;
  for (const cudaLaunchAttribute& a : std::span(config->attrs, config->numAttrs)) {
    if (const cudaError_t e = read_attribute(a, cooperative); e != cudaSuccess) return e;
  }
  return launch(find_function(symbol), config->gridDim, config->blockDim, args, config->dynamicSmemBytes,
                config->stream, cooperative);
}

cudaError_t cudaFuncSetAttribute(const void* symbol, cudaFuncAttribute attribute, int value) {
  Function* function = find_function(symbol);
  if (function == nullptr) return failed(cudaErrorInvalidDeviceFunction);
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      break;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      if (value < cudaSharedmemCarveoutDefault || value > cudaSharedmemCarveoutMaxShared)
        return failed(cudaErrorInvalidValue);
      return function->shared_carveout = value, failed(cudaSuccess);
      SIMGPU_NOT_SIMULATED(cudaFuncAttributeClusterDimMustBeSet)
      SIMGPU_NOT_SIMULATED(cudaFuncAttributeRequiredClusterWidth)
      SIMGPU_NOT_SIMULATED(cudaFuncAttributeRequiredClusterHeight)
      SIMGPU_NOT_SIMULATED(cudaFuncAttributeRequiredClusterDepth)
      SIMGPU_NOT_SIMULATED(cudaFuncAttributeNonPortableClusterSizeAllowed)
      SIMGPU_NOT_SIMULATED(cudaFuncAttributeClusterSchedulingPolicyPreference)
    default:
      return failed(cudaErrorInvalidValue);
  }
  cudaError_t error;
  Kernel* kernel = kernel_of(symbol, error);
  if (kernel == nullptr) return failed(error);
  if (value < 0 || value + static_cast<int>(kernel->static_shared_bytes()) > kSharedBytesOptIn)
    return failed(cudaErrorInvalidValue);
  function->dynamic_shared_limit = value;
  return failed(cudaSuccess);
}
cudaError_t cudaFuncGetName(const char** name, const void* symbol) {
  const Function* function = find_function(symbol);
  if (function == nullptr) return failed(cudaErrorInvalidDeviceFunction);
  return *name = function->name.c_str(), failed(cudaSuccess);
}
cudaError_t cudaGetFuncBySymbol(cudaFunction_t* out, const void* symbol) {
  *out = reinterpret_cast<cudaFunction_t>(find_function(symbol));
  return failed(*out != nullptr ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}
cudaError_t cudaGetKernel(cudaKernel_t* out, const void* symbol) {
  *out = reinterpret_cast<cudaKernel_t>(find_function(symbol));
  return failed(*out != nullptr ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}
cudaError_t cudaFuncSetCacheConfig(const void* symbol, cudaFuncCache) {
  return failed(find_function(symbol) != nullptr ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void* symbol) {
  cudaError_t error;
  Kernel* kernel = kernel_of(symbol, error);
  if (kernel == nullptr) return failed(error);
  *out = {};
  out->sharedSizeBytes = kernel->static_shared_bytes();
  out->localSizeBytes = kernel->local_bytes();
  out->maxThreadsPerBlock = static_cast<int>(kernel->max_threads_per_block());
  out->numRegs = registers_of(*find_function(symbol));
  out->ptxVersion = 80;
  out->binaryVersion = 80;
  out->maxDynamicSharedSizeBytes = find_function(symbol)->dynamic_shared_limit;
  out->preferredShmemCarveout = find_function(symbol)->shared_carveout;
  return failed(cudaSuccess);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, const void* symbol, int threads,
                                                                   size_t shared, unsigned) {
  cudaError_t error;
  Kernel* kernel = kernel_of(symbol, error);
  if (kernel == nullptr) return failed(error);
  *out = resident_blocks(*kernel, registers_of(*find_function(symbol)), threads, shared);
  return failed(cudaSuccess);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* out, const void* symbol, int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(out, symbol, threads, shared, 0);
}

// The most of dynamic shared memory with which `blocks` fit on a multiprocessor.
cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t* out, const void* symbol, int blocks,
                                                      int threads) {
  cudaError_t error;
  Kernel* kernel = kernel_of(symbol, error);
  if (kernel == nullptr) return failed(error);
  size_t bytes = kSharedBytesOptIn - kernel->static_shared_bytes();
  while (bytes > 0 && resident_blocks(*kernel, registers_of(*find_function(symbol)), threads, bytes) < blocks)
    bytes -= std::min<size_t>(bytes, 128);
  return *out = bytes, failed(cudaSuccess);
}

}  // extern "C"
