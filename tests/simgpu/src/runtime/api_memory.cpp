// Allocation and copies.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "memory.h"
#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace {

cudaError_t allocate(void** out, size_t bytes, MemoryKind kind, Shadow state, const char* call) {
  if (out == nullptr) return failed(cudaErrorInvalidValue);
  *out = nullptr;
  if (Context::get().sticky != cudaSuccess) return failed(cudaSuccess);
  if (bytes == 0) return failed(cudaSuccess);
  const bool on_device = kind != MemoryKind::kPinnedHost;
  if (on_device && (bytes > kDeviceBytes || memory::live_bytes(current_device) + bytes > kDeviceBytes))
    return failed(cudaErrorMemoryAllocation);
  static u64 number = 0;
  *out = memory::allocate(bytes, kind, current_device, state,
                          std::string(call) + " #" + std::to_string(++number));
  return failed(*out != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}

// The whole range must lie in one allocation where it is device memory; memory of the process is the caller's
// own affair.
bool valid_range(const void* pointer, size_t bytes, const char* call) {
  const u64 address = reinterpret_cast<u64>(pointer);
  if (bytes == 0 || !memory::contains(address, 1)) return true;
  const auto a = memory::nearest(address);
  if (a && a->live && address + bytes <= a->base + a->size) return true;
  const bool past = a && a->live && address < a->base + a->size;
  std::fprintf(stderr, "simgpu: %s of %zu bytes: %s\n", call, bytes,
               memory::describe(past ? a->base + a->size : address).c_str());
  return false;
}
bool is_pageable(const void* pointer) { return !memory::contains(reinterpret_cast<u64>(pointer), 1); }
bool is_host(const void* pointer) {
  if (is_pageable(pointer)) return true;
  const auto a = memory::nearest(reinterpret_cast<u64>(pointer));
  return a && a->kind == MemoryKind::kPinnedHost;
}

void copy_now(void* to, const void* from, size_t bytes) {
  std::memmove(to, from, bytes);
  if (is_pageable(to) || bytes == 0) return;
  u8* state = memory::shadow(reinterpret_cast<u64>(to));
  if (is_pageable(from))
    std::memset(state, kInitialised, bytes);
  else
    std::memmove(state, memory::shadow(reinterpret_cast<u64>(from)), bytes);
}

bool valid_kind(const void* to, const void* from, cudaMemcpyKind kind) {
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return !is_pageable(to);
    case cudaMemcpyDeviceToHost:
      return !is_pageable(from);
    case cudaMemcpyDeviceToDevice:
      return !is_pageable(to) && !is_pageable(from);
    case cudaMemcpyHostToHost:
      return is_host(to) && is_host(from);
    default:
      return true;
  }
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle,
                 bool asynchronous) {
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  if (context.sticky != cudaSuccess) return failed(cudaSuccess);
  if (bytes == 0) return failed(cudaSuccess);
  if (to == nullptr || from == nullptr) return failed(cudaErrorInvalidValue);
  if (!valid_kind(to, from, kind)) return failed(cudaErrorInvalidMemcpyDirection);
  if (!valid_range(to, bytes, "copy to") || !valid_range(from, bytes, "copy from"))
    return failed(cudaErrorInvalidValue);
  Stream& stream = context.stream(handle);
  if (is_pageable(from) && asynchronous) {  // staged before the call returns
    std::vector<u8> staged(static_cast<const u8*>(from), static_cast<const u8*>(from) + bytes);
    context.submit(stream, [to, staged = std::move(staged)] { copy_now(to, staged.data(), staged.size()); });
  } else {
    context.submit(stream, [=] { copy_now(to, from, bytes); });
  }
  const bool wait = !asynchronous || is_pageable(to);
  if (wait && stream.capture == nullptr) context.wait(stream.last);
  return failed(cudaSuccess);
}

cudaError_t fill(void* to, int value, size_t bytes, cudaStream_t handle) {
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  if (context.sticky != cudaSuccess || bytes == 0) return failed(cudaSuccess);
  if (is_pageable(to) || !valid_range(to, bytes, "memset")) return failed(cudaErrorInvalidValue);
  context.submit(context.stream(handle), [=] {
    std::memset(to, value, bytes);
    std::memset(memory::shadow(reinterpret_cast<u64>(to)), kInitialised, bytes);
  });
  return failed(cudaSuccess);
}

cudaError_t copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                    size_t height, cudaMemcpyKind kind, cudaStream_t stream, bool asynchronous) {
  if (width > to_pitch || width > from_pitch) return failed(cudaErrorInvalidPitchValue);
  for (size_t row = 0; row < height; ++row) {
    const cudaError_t e =
        copy(static_cast<u8*>(to) + row * to_pitch, static_cast<const u8*>(from) + row * from_pitch, width,
             kind, stream, asynchronous);
    if (e != cudaSuccess) return e;
  }
  return failed(cudaSuccess);
}

cudaError_t symbol_variable(const void* symbol, Variable& out) {
  Context& context = Context::get();
  const auto found = context.symbols.find(symbol);
  if (found == context.symbols.end()) return cudaErrorInvalidSymbol;
  FatBinary& binary = *found->second.binary;
  if (!binary.problem.empty()) {
    std::fprintf(stderr, "simgpu: variable %s: %s\n", found->second.name.c_str(), binary.problem.c_str());
    return cudaErrorInvalidSymbol;
  }
  auto& module = binary.modules[current_device];
  if (module == nullptr) module = parse_module(binary.ptx, current_device);
  const Variable* v = module->find_variable(found->second.name);
  if (v == nullptr) return cudaErrorInvalidSymbol;
  out = *v;
  return cudaSuccess;
}
cudaError_t copy_symbol(const void* symbol, void* other, size_t bytes, size_t offset, bool to_symbol,
                        cudaMemcpyKind kind, cudaStream_t stream, bool asynchronous) {
  Variable v;
  const cudaError_t e = symbol_variable(symbol, v);
  if (e != cudaSuccess) return failed(e);
  if (offset + bytes > v.size) return failed(cudaErrorInvalidValue);
  void* place = reinterpret_cast<void*>(v.address + offset);
  return to_symbol ? copy(place, other, bytes, kind, stream, asynchronous)
                   : copy(other, place, bytes, kind, stream, asynchronous);
}

cudaError_t allocate_async(void** out, size_t bytes, Pool* pool, cudaStream_t handle) {
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  const cudaError_t e = allocate(out, bytes, MemoryKind::kPool, kUninitialised, "cudaMallocAsync");
  if (e != cudaSuccess || *out == nullptr) return e;
  // Usable from its place in the stream on; before, an access is out of bounds.
  void* const memory = *out;
  std::memset(memory::shadow(reinterpret_cast<u64>(memory)), kUnallocated, bytes);
  pool_allocated(pool, current_device, memory, bytes);
  context.submit(context.stream(handle),
                 [=] { std::memset(memory::shadow(reinterpret_cast<u64>(memory)), kUninitialised, bytes); });
  return failed(cudaSuccess);
}

cudaError_t release(void* pointer, bool host) {
  Context& context = Context::get();
  if (pointer == nullptr) return failed(cudaSuccess);
  const auto a = memory::nearest(reinterpret_cast<u64>(pointer));
  if (!a || a->base != reinterpret_cast<u64>(pointer) || (a->kind == MemoryKind::kPinnedHost) != host)
    return failed(cudaErrorInvalidValue);
  context.wait_all(a->device);  // cudaFree waits for the device
  pool_released(pointer);
  return failed(memory::release(pointer) ? cudaSuccess : cudaErrorInvalidValue);
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** out, size_t bytes) {
  return allocate(out, bytes, MemoryKind::kDevice, kUninitialised, "cudaMalloc");
}
cudaError_t cudaMallocManaged(void** out, size_t bytes, unsigned) {
  return allocate(out, bytes, MemoryKind::kManaged, kInitialised, "cudaMallocManaged");
}
cudaError_t cudaMallocHost(void** out, size_t bytes) {
  return allocate(out, bytes, MemoryKind::kPinnedHost, kInitialised, "cudaMallocHost");
}
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  return allocate(out, bytes, MemoryKind::kPinnedHost, kInitialised, "cudaHostAlloc");
}
cudaError_t cudaFree(void* pointer) { return release(pointer, false); }
cudaError_t cudaFreeHost(void* pointer) { return release(pointer, true); }
cudaError_t cudaHostGetDevicePointer(void** out, void* host, unsigned) {
  *out = host;
  return failed(is_pageable(host) ? cudaErrorInvalidValue : cudaSuccess);
}
cudaError_t cudaMallocAsync(void** out, size_t bytes, cudaStream_t stream) {
  return allocate_async(out, bytes, nullptr, stream);
}
cudaError_t cudaMallocFromPoolAsync(void** out, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  return allocate_async(out, bytes, reinterpret_cast<Pool*>(pool), stream);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  if (pointer == nullptr) return failed(cudaSuccess);
  const auto a = memory::nearest(reinterpret_cast<u64>(pointer));
  if (!a || a->base != reinterpret_cast<u64>(pointer) || !a->live || a->kind == MemoryKind::kPinnedHost)
    return failed(cudaErrorInvalidValue);
  Context& context = Context::get();
  context.submit(context.stream(stream), [=] {
    pool_released(pointer);
    memory::release(pointer);
  });
  return failed(cudaSuccess);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = kDeviceBytes;
  *free_bytes = kDeviceBytes - memory::live_bytes(current_device);
  return failed(cudaSuccess);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* pointer) {
  *out = {};
  const auto a = memory::nearest(reinterpret_cast<u64>(pointer));
  if (is_pageable(pointer) || !a || reinterpret_cast<u64>(pointer) >= a->base + a->size || !a->live) {
    out->type = cudaMemoryTypeUnregistered;
    out->device = cudaInvalidDeviceId;
    out->hostPointer = const_cast<void*>(pointer);
    return failed(cudaSuccess);
  }
  out->type = a->kind == MemoryKind::kPinnedHost ? cudaMemoryTypeHost
              : a->kind == MemoryKind::kManaged  ? cudaMemoryTypeManaged
                                                 : cudaMemoryTypeDevice;
  out->device = a->device;
  out->devicePointer = const_cast<void*>(pointer);
  out->hostPointer = a->kind == MemoryKind::kPinnedHost || a->kind == MemoryKind::kManaged
                         ? const_cast<void*>(pointer)
                         : nullptr;
  return failed(cudaSuccess);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return copy(to, from, bytes, kind, nullptr, false);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy(to, from, bytes, kind, stream, true);
}
cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t bytes) {
  return copy(to, from, bytes, cudaMemcpyDeviceToDevice, nullptr, false);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream, true);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                         size_t height, cudaMemcpyKind kind) {
  return copy_2d(to, to_pitch, from, from_pitch, width, height, kind, nullptr, false);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_2d(to, to_pitch, from, from_pitch, width, height, kind, stream, true);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) { return fill(to, value, bytes, nullptr); }
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return fill(to, value, bytes, stream);
}
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  if (width > pitch) return failed(cudaErrorInvalidPitchValue);
  for (size_t row = 0; row < height; ++row) {
    if (const cudaError_t e = fill(static_cast<u8*>(to) + row * pitch, value, width, stream);
        e != cudaSuccess)
      return e;
  }
  return failed(cudaSuccess);
}
cudaError_t cudaMemset2D(void* to, size_t pitch, int value, size_t width, size_t height) {
  return cudaMemset2DAsync(to, pitch, value, width, height, nullptr);
}

cudaError_t cudaGetSymbolAddress(void** out, const void* symbol) {
  Variable v;
  const cudaError_t e = symbol_variable(symbol, v);
  *out = reinterpret_cast<void*>(v.address);
  return failed(e);
}
cudaError_t cudaGetSymbolSize(size_t* out, const void* symbol) {
  Variable v;
  const cudaError_t e = symbol_variable(symbol, v);
  *out = v.size;
  return failed(e);
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset,
                               cudaMemcpyKind kind) {
  return copy_symbol(symbol, const_cast<void*>(from), bytes, offset, true, kind, nullptr, false);
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset,
                                 cudaMemcpyKind kind) {
  return copy_symbol(symbol, to, bytes, offset, false, kind, nullptr, false);
}
cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes, size_t offset,
                                    cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_symbol(symbol, const_cast<void*>(from), bytes, offset, true, kind, stream, true);
}
cudaError_t cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset,
                                      cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_symbol(symbol, to, bytes, offset, false, kind, stream, true);
}

}  // extern "C"
