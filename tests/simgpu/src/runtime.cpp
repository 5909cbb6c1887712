// The CUDA runtime entry points that nvcc's host code and the tests call. Every stream runs in issue order at once.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "program.h"

namespace {

using namespace simgpu;

struct Loaded {
  std::unique_ptr<Module> module;
  std::string problem;
};
struct Function {
  Loaded* owner = nullptr;
  std::string name;
};
struct Call {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
};

std::unordered_map<const void*, Function>& functions() {
  static auto* f = new std::unordered_map<const void*, Function>;
  return *f;
}
struct Symbol {
  Loaded* owner;
  std::string name;
};
std::unordered_map<const void*, Symbol>& symbols() {
  static auto* s = new std::unordered_map<const void*, Symbol>;
  return *s;
}
thread_local std::vector<Call> calls;
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t sticky_error = cudaSuccess;  // a failed kernel poisons the context, as on hardware

cudaError_t fail(cudaError_t e) {
  if (e != cudaSuccess) last_error = e;
  return sticky_error != cudaSuccess ? sticky_error : e;
}

cudaError_t launch(Function& f, dim3 g, dim3 b, void** args, size_t shared) {
  if (!f.owner->module) {
    fprintf(stderr, "[simgpu] kernel %s: %s\n", f.name.c_str(), f.owner->problem.c_str());
    sticky_error = cudaErrorNoKernelImageForDevice;
    return fail(sticky_error);
  }
  auto it = f.owner->module->kernels.find(f.name);
  if (it == f.owner->module->kernels.end()) return fail(cudaErrorInvalidDeviceFunction);
  const u64 threads = u64(b.x) * b.y * b.z;
  if (!threads || threads > 1024 || b.z > 64 || !g.x || !g.y || !g.z || g.y > 65535 || g.z > 65535 || shared > 163 * 1024) {
    return fail(cudaErrorInvalidConfiguration);
  }
  try {
    const LaunchCounters c = execute(it->second, {g.x, g.y, g.z}, {b.x, b.y, b.z}, args, shared, false);
    if (getenv("ERGON_SIMGPU_PROFILE")) {
      fprintf(stderr, "[simgpu] %s: %llu blocks, %llu warp instructions, %llu lane instructions\n", f.name.c_str(),
              (unsigned long long)c.blocks, (unsigned long long)c.warp_instructions, (unsigned long long)c.lane_instructions);
    }
  } catch (const PtxError& e) {
    fprintf(stderr, "[simgpu] %s (launching %s)\n", e.what(), f.name.c_str());
    sticky_error = cudaErrorLaunchFailure;
    return fail(sticky_error);
  }
  return fail(cudaSuccess);
}

cudaError_t copy(void* to, const void* from, size_t n) {
  for (const void* p : {static_cast<const void*>(to), from}) {
    const u64 a = reinterpret_cast<u64>(p);
    for (u64 k = 0; n && in_arena(a, n) && k < n; ++k) {
      const u8 s = shadow_of(a)[k];
      if (s == kInitialised || s == kUninitialised) continue;
      fprintf(stderr, "[simgpu] cudaMemcpy: %s\n", describe_address(a + k).c_str());
      return fail(cudaErrorInvalidValue);
    }
  }
  const u64 a = reinterpret_cast<u64>(to), b = reinterpret_cast<u64>(from);
  memmove(to, from, n);
  if (n && in_arena(a, n)) {
    if (in_arena(b, n)) memmove(shadow_of(a), shadow_of(b), n);
    else memset(shadow_of(a), kInitialised, n);
  }
  return fail(cudaSuccess);
}

cudaError_t allocate(void** p, size_t n, const char* kind, Shadow state) {
  if (!p) return fail(cudaErrorInvalidValue);
  *p = n ? device_malloc(n, kind, state) : nullptr;
  return fail(!n || *p ? cudaSuccess : cudaErrorMemoryAllocation);
}

// The CUDA 13 handle of a kernel is our Function.
Function* function_of(cudaKernel_t k) { return reinterpret_cast<Function*>(k); }

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  free(malloc(1));
  void* warm = device_malloc(1, "reserved", kInitialised);  // reserves the address range
  device_free(warm);
  auto* l = new Loaded;
  try {
    l->module = parse_module(extract_ptx(wrapper));
  } catch (const PtxError& e) {
    l->problem = e.what();
    fprintf(stderr, "[simgpu] %s\n", e.what());
  }
  return reinterpret_cast<void**>(l);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {
  static bool once = false;
  if (!once && getenv("ERGON_SIMGPU_LEAKS")) report_leaks();
  once = true;
}
void __cudaRegisterFunction(void** h, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  functions()[host] = {reinterpret_cast<Loaded*>(h), name};
}
void __cudaRegisterVar(void** h, char* host, char*, const char* name, int, size_t, int, int) {
  symbols()[host] = {reinterpret_cast<Loaded*>(h), name};
}
char __cudaInitModule(void**) { return 1; }
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t shared, cudaStream_t s) { return calls.push_back({g, b, shared, s}), 0; }
cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* shared, void* stream) {
  if (calls.empty()) return fail(cudaErrorMissingConfiguration);
  const Call c = calls.back();
  calls.pop_back();
  *g = c.grid, *b = c.block, *shared = c.shared, *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* host) {
  auto it = functions().find(host);
  if (it == functions().end()) return fail(cudaErrorInvalidDeviceFunction);
  *out = reinterpret_cast<cudaKernel_t>(&it->second);
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t) {
  return k ? launch(*function_of(k), g, b, args, shared) : fail(cudaErrorInvalidDeviceFunction);
}
cudaError_t CUDARTAPI cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
  cudaKernel_t k = nullptr;
  const cudaError_t e = __cudaGetKernel(&k, f);
  return e ? e : __cudaLaunchKernel(k, g, b, args, shared, s);
}

cudaError_t CUDARTAPI cudaMalloc(void** p, size_t n) { return allocate(p, n, "global", kUninitialised); }
cudaError_t CUDARTAPI cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t CUDARTAPI cudaMallocHost(void** p, size_t n) { return allocate(p, n, "pinned host", kInitialised); }
cudaError_t CUDARTAPI cudaFree(void* p) { return fail(!p || device_free(p) ? cudaSuccess : cudaErrorInvalidValue); }
cudaError_t CUDARTAPI cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t CUDARTAPI cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t CUDARTAPI cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) { return copy(to, from, n); }
cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) { return copy(to, from, n); }
cudaError_t CUDARTAPI cudaMemset(void* p, int v, size_t n) {
  const std::vector<char> bytes(n, static_cast<char>(v));
  return copy(p, bytes.data(), n);
}
cudaError_t CUDARTAPI cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { return cudaMemset(p, v, n); }
cudaError_t CUDARTAPI cudaGetSymbolAddress(void** p, const void* symbol) {
  auto it = symbols().find(symbol);
  if (it == symbols().end() || !it->second.owner->module) return fail(cudaErrorInvalidSymbol);
  auto v = it->second.owner->module->variables.find(it->second.name);
  if (v == it->second.owner->module->variables.end()) return fail(cudaErrorInvalidSymbol);
  *p = reinterpret_cast<void*>(v->second.address);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaMemcpyToSymbol(const void* symbol, const void* from, size_t n, size_t offset, cudaMemcpyKind) {
  void* p = nullptr;
  const cudaError_t e = cudaGetSymbolAddress(&p, symbol);
  return e ? e : copy(static_cast<char*>(p) + offset, from, n);
}

cudaError_t CUDARTAPI cudaDeviceSynchronize() { return sticky_error; }
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t) { return sticky_error; }
cudaError_t CUDARTAPI cudaStreamCreate(cudaStream_t* s) { return *s = reinterpret_cast<cudaStream_t>(new char), cudaSuccess; }
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t s) { return delete reinterpret_cast<char*>(s), cudaSuccess; }
cudaError_t CUDARTAPI cudaGetLastError() {
  const cudaError_t e = sticky_error ? sticky_error : last_error;
  last_error = cudaSuccess;
  return e;
}
cudaError_t CUDARTAPI cudaPeekAtLastError() { return sticky_error ? sticky_error : last_error; }
// Also clears a kernel's failure: the simulated device starts afresh.
cudaError_t CUDARTAPI cudaDeviceReset() { return sticky_error = last_error = cudaSuccess; }
cudaError_t CUDARTAPI cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
cudaError_t CUDARTAPI cudaGetDevice(int* d) { return *d = 0, cudaSuccess; }
cudaError_t CUDARTAPI cudaSetDevice(int d) { return fail(d == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
const char* CUDARTAPI cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    default: return "CUDA error";
  }
}
}
