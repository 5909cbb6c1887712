// Allocation, and what is known of a pointer.
#include <cstring>
#include <string>

#include "memory.h"
#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace {

u64 address_of(const void* pointer) { return reinterpret_cast<u64>(pointer); }
bool is_registered(const void* pointer) { return memory::is_registered(address_of(pointer), 1); }
// Pinned: allocated so, or registered.
bool is_pinned(const void* pointer) {
  if (is_registered(pointer)) return true;
  const auto a = memory::nearest(address_of(pointer));
  return a && a->live && a->kind == MemoryKind::kPinnedHost && address_of(pointer) < a->base + a->size;
}

cudaError_t allocate(void** out, size_t bytes, MemoryKind kind, Shadow state, const char* call) {
  if (out == nullptr) return failed(cudaErrorInvalidValue);
  *out = nullptr;
  if (Context::get().sticky != cudaSuccess) return failed(cudaSuccess);
  if (bytes == 0) return failed(cudaSuccess);
  const u64 room = settings().memory_bytes;
  if (kind != MemoryKind::kPinnedHost && (bytes > room || memory::live_bytes(current_device) + bytes > room))
    return failed(cudaErrorMemoryAllocation);
  static u64 number = 0;
  *out = memory::allocate(bytes, kind, current_device, state,
                          std::string(call) + " #" + std::to_string(++number));
  return failed(*out != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}
// Not of a stream: not while one captures.
cudaError_t allocate_now(void** out, size_t bytes, MemoryKind kind, Shadow state, const char* call) {
  if (const cudaError_t e = Context::get().allowed_in_capture(); e != cudaSuccess) return failed(e);
  return allocate(out, bytes, kind, state, call);
}

void set_state(void* pointer, size_t bytes, Shadow state) {
  std::memset(memory::shadow(address_of(pointer)), state, bytes);
}

cudaError_t allocate_async(void** out, size_t bytes, Pool* pool, cudaStream_t handle) {
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  const cudaError_t e = allocate(out, bytes, MemoryKind::kPool, kUninitialised, "cudaMallocAsync");
  if (e != cudaSuccess || *out == nullptr) return e;
  // Usable from its place in the stream on; before, an access is out of bounds.
  void* const block = *out;
  set_state(block, bytes, kUnallocated);
  Stream& stream = context.stream(handle);
  if (stream.capture != nullptr) {  // each launch of the graph makes it anew
    stream.capture->memory.emplace_back(block, [](void* p) { memory::release(p); });
  } else {
    pool_allocated(pool, current_device, block, bytes);
    memory::set_open_to(block, pool_open_to(pool, current_device));
  }
  return failed(context.submit(stream, WorkKind::kMemory, [=] { set_state(block, bytes, kUninitialised); }));
}

cudaError_t free_async(void* pointer, cudaStream_t handle) {
  if (pointer == nullptr) return failed(cudaSuccess);
  const auto a = memory::nearest(address_of(pointer));
  if (!a || a->base != address_of(pointer) || !a->live || a->freeing || a->kind == MemoryKind::kPinnedHost)
    return failed(cudaErrorInvalidValue);
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  Stream& stream = context.stream(handle);
  if (stream.capture == nullptr) {
    memory::set_freeing(pointer);
    return failed(context.submit(stream, WorkKind::kMemory, [=] {
      pool_released(pointer);
      memory::release(pointer);
    }));
  }
  for (const auto& own : stream.capture->memory) {
    if (own.get() == pointer)
      return failed(
          context.submit(stream, WorkKind::kMemory, [=, n = a->size] { set_state(pointer, n, kFreed); }));
  }
  return failed(cudaErrorInvalidValue);  // a graph frees what it has allocated
}

cudaError_t release(void* pointer, bool host) {
  Context& context = Context::get();
  if (pointer == nullptr) return failed(cudaSuccess);
  const auto a = memory::nearest(address_of(pointer));
  if (!a || a->base != address_of(pointer) || !a->live || (a->kind == MemoryKind::kPinnedHost) != host)
    return failed(cudaErrorInvalidValue);
  if (const cudaError_t e = context.allowed_in_capture(); e != cudaSuccess) return failed(e);
  context.wait_all(a->device);  // cudaFree waits for the device
  pool_released(pointer);
  return failed(memory::release(pointer) ? cudaSuccess : cudaErrorInvalidValue);
}

constexpr size_t kPitch = 512;  // rows of cudaMallocPitch begin at a multiple of it

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** out, size_t bytes) {
  return allocate_now(out, bytes, MemoryKind::kDevice, kUninitialised, "cudaMalloc");
}
cudaError_t cudaMallocPitch(void** out, size_t* pitch, size_t width, size_t height) {
  *pitch = (width + kPitch - 1) / kPitch * kPitch;
  return allocate_now(out, *pitch * height, MemoryKind::kDevice, kUninitialised, "cudaMallocPitch");
}
cudaError_t cudaMalloc3D(cudaPitchedPtr* out, cudaExtent e) {
  *out = {nullptr, 0, e.width, e.height};
  return cudaMallocPitch(&out->ptr, &out->pitch, e.width, e.height * e.depth);
}
cudaError_t cudaMallocManaged(void** out, size_t bytes, unsigned) {
  return allocate_now(out, bytes, MemoryKind::kManaged, kInitialised, "cudaMallocManaged");
}
cudaError_t cudaMallocHost(void** out, size_t bytes) {
  return allocate_now(out, bytes, MemoryKind::kPinnedHost, kInitialised, "cudaMallocHost");
}
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  return allocate_now(out, bytes, MemoryKind::kPinnedHost, kInitialised, "cudaHostAlloc");
}
cudaError_t cudaFree(void* pointer) { return release(pointer, false); }
cudaError_t cudaFreeHost(void* pointer) { return release(pointer, true); }
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
  if (pointer == nullptr || bytes == 0) return failed(cudaErrorInvalidValue);
  const bool added = !is_pinned(pointer) && memory::add_registered(address_of(pointer), bytes);
  return failed(added ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered);
}
cudaError_t cudaHostUnregister(void* pointer) {
  Context::get().wait_all();
  return failed(memory::remove_registered(address_of(pointer)) ? cudaSuccess
                                                               : cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaHostGetDevicePointer(void** out, void* host, unsigned) {
  *out = is_pinned(host) ? host : nullptr;
  return failed(*out != nullptr ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaHostGetFlags(unsigned* flags, void* host) {
  if (!is_pinned(host)) return failed(cudaErrorInvalidValue);
  return *flags = cudaHostAllocMapped | cudaHostAllocPortable, failed(cudaSuccess);
}
cudaError_t cudaMallocAsync(void** out, size_t bytes, cudaStream_t stream) {
  return allocate_async(out, bytes, nullptr, stream);
}
cudaError_t cudaMallocFromPoolAsync(void** out, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  return allocate_async(out, bytes, reinterpret_cast<Pool*>(pool), stream);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) { return free_async(pointer, stream); }
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = settings().memory_bytes;
  const u64 taken = memory::live_bytes(current_device) + pool_unused(current_device);
  *free_bytes = *total - std::min<u64>(taken, *total);
  return failed(cudaSuccess);
}
// Hints: managed memory is where the host and every device see it.
cudaError_t cudaMemPrefetchAsync(const void*, size_t, cudaMemLocation, unsigned, cudaStream_t) {
  return failed(cudaSuccess);
}
cudaError_t cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, cudaMemLocation) {
  return failed(cudaSuccess);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* pointer) {
  *out = {};
  auto* const address = const_cast<void*>(pointer);
  const auto a = memory::nearest(address_of(pointer));
  const bool allocated = a && a->live && address_of(pointer) < a->base + a->size;
  out->device = allocated ? a->device : is_registered(pointer) ? current_device : cudaInvalidDeviceId;
  out->type = is_pinned(pointer)                ? cudaMemoryTypeHost
              : !allocated                      ? cudaMemoryTypeUnregistered
              : a->kind == MemoryKind::kManaged ? cudaMemoryTypeManaged
                                                : cudaMemoryTypeDevice;
  if (out->type != cudaMemoryTypeUnregistered) out->devicePointer = address;
  if (out->type != cudaMemoryTypeDevice) out->hostPointer = address;
  return failed(cudaSuccess);
}

}  // extern "C"
