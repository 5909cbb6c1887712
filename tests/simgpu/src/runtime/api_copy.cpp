// Copies and fills, of memory and of symbols.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "memory.h"
#include "runtime/context.h"

using namespace simgpu;

namespace {

u64 address_of(const void* pointer) { return reinterpret_cast<u64>(pointer); }
bool is_device_range(const void* pointer) { return memory::contains(address_of(pointer), 1); }
bool is_pageable(const void* pointer) {
  return !is_device_range(pointer) && !memory::is_registered(address_of(pointer), 1);
}
bool is_host(const void* pointer) {
  if (!is_device_range(pointer)) return true;
  const auto a = memory::nearest(address_of(pointer));
  return a && a->kind == MemoryKind::kPinnedHost;
}

// The whole range must lie in one allocation where it is device memory; memory of the process is the caller's
// own affair.
bool valid_range(const void* pointer, size_t bytes, const char* call) {
  const u64 address = address_of(pointer);
  if (bytes == 0 || !is_device_range(pointer)) return true;
  const auto a = memory::nearest(address);
  if (a && a->live && address + bytes <= a->base + a->size) return true;
  const bool past = a && a->live && address < a->base + a->size;
  std::fprintf(stderr, "simgpu: %s of %zu bytes: %s\n", call, bytes,
               memory::describe(past ? a->base + a->size : address).c_str());
  return false;
}
// When its turn in the stream has come: false, and the context has failed, where the memory is not allocated
// yet or has been freed.
bool allocated_now(const void* pointer, size_t bytes, const char* call) {
  if (!is_device_range(pointer)) return true;
  const auto bad = memory::first_inaccessible(address_of(pointer), bytes);
  if (!bad) return true;
  const bool freed = *memory::shadow(*bad) == kFreed || memory::is_freed(*bad);
  Context::get().fail(Fault(
      freed ? FaultKind::kUseAfterFree : FaultKind::kOutOfBounds,
      std::string(call) + " of " + std::to_string(bytes) + " bytes, " + memory::describe(*bad)
          + (freed ? ": it has been freed" : ": it is not allocated") + " when the stream comes to it"));
  return false;
}

// Rows of `width` bytes, one every pitch bytes.
struct Rows {
  void* to = nullptr;
  const void* from = nullptr;
  size_t to_pitch = 0, from_pitch = 0, width = 0, height = 1;

  size_t to_bytes() const { return (height - 1) * to_pitch + width; }
  size_t from_bytes() const { return (height - 1) * from_pitch + width; }
};

void copy_now(const Rows& r) {
  if (Context::get().sticky != cudaSuccess) return;
  for (size_t row = 0; row < r.height; ++row) {
    void* const to = static_cast<u8*>(r.to) + row * r.to_pitch;
    const void* const from = static_cast<const u8*>(r.from) + row * r.from_pitch;
    if (!allocated_now(to, r.width, "copy to") || !allocated_now(from, r.width, "copy from")) return;
    std::memmove(to, from, r.width);
    if (!is_device_range(to)) continue;
    u8* const state = memory::shadow(address_of(to));
    if (is_device_range(from))
      std::memmove(state, memory::shadow(address_of(from)), r.width);
    else
      std::memset(state, kInitialised, r.width);
  }
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

cudaError_t copy_rows(Rows r, cudaMemcpyKind kind, cudaStream_t handle, bool asynchronous) {
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  if (context.sticky != cudaSuccess) return failed(cudaSuccess);
  if (r.height > 1 && (r.width > r.to_pitch || r.width > r.from_pitch))
    return failed(cudaErrorInvalidPitchValue);
  if (r.width == 0 || r.height == 0) return failed(cudaSuccess);
  if (r.to == nullptr || r.from == nullptr) return failed(cudaErrorInvalidValue);
  if (!valid_kind(r.to, r.from, kind)) return failed(cudaErrorInvalidMemcpyDirection);
  if (!valid_range(r.to, r.to_bytes(), "copy to") || !valid_range(r.from, r.from_bytes(), "copy from"))
    return failed(cudaErrorInvalidValue);
  Stream& stream = context.stream(handle);
  cudaError_t error;
  if (is_pageable(r.from) && asynchronous) {  // staged before the call returns
    const auto* const from = static_cast<const u8*>(r.from);
    error =
        context.submit(stream, WorkKind::kCopy, [r, staged = std::vector<u8>(from, from + r.from_bytes())] {
          Rows copy = r;
          copy.from = staged.data();
          copy_now(copy);
        });
  } else {
    error = context.submit(stream, WorkKind::kCopy, [r] { copy_now(r); });
  }
  const bool wait = !asynchronous || is_pageable(r.to);
  if (error == cudaSuccess && wait && stream.capture == nullptr) context.wait(stream.last);
  return failed(error);
}
cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream,
                 bool asynchronous) {
  return copy_rows({to, from, 0, 0, bytes}, kind, stream, asynchronous);
}
cudaError_t copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                    size_t height, cudaMemcpyKind kind, cudaStream_t stream, bool asynchronous) {
  if (width > to_pitch || width > from_pitch) return failed(cudaErrorInvalidPitchValue);
  return copy_rows({to, from, to_pitch, from_pitch, width, height}, kind, stream, asynchronous);
}
cudaError_t copy_3d(const cudaMemcpy3DParms& p, cudaStream_t stream, bool asynchronous) {
  if (p.srcArray != nullptr || p.dstArray != nullptr) return not_simulated("cudaMemcpy3D of a CUDA array");
  const auto place = [](const cudaPitchedPtr& pointer, const cudaPos& at, size_t slice) {
    return static_cast<u8*>(pointer.ptr) + at.x + pointer.pitch * (at.y + pointer.ysize * (at.z + slice));
  };
  for (size_t z = 0; z < p.extent.depth; ++z) {
    const cudaError_t e =
        copy_2d(place(p.dstPtr, p.dstPos, z), p.dstPtr.pitch, place(p.srcPtr, p.srcPos, z), p.srcPtr.pitch,
                p.extent.width, p.extent.height, p.kind, stream, asynchronous);
    if (e != cudaSuccess) return e;
  }
  return failed(cudaSuccess);
}

cudaError_t fill(void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t handle) {
  Context& context = Context::get();
  const std::lock_guard lock(context.mutex);
  if (context.sticky != cudaSuccess) return failed(cudaSuccess);
  if (height > 1 && width > pitch) return failed(cudaErrorInvalidPitchValue);
  if (width == 0 || height == 0) return failed(cudaSuccess);
  if (!is_device_range(to) || !valid_range(to, (height - 1) * pitch + width, "memset"))
    return failed(cudaErrorInvalidValue);
  return failed(context.submit(context.stream(handle), WorkKind::kFill, [=] {
    if (Context::get().sticky != cudaSuccess) return;
    for (size_t row = 0; row < height; ++row) {
      void* const place = static_cast<u8*>(to) + row * pitch;
      if (!allocated_now(place, width, "memset")) return;
      std::memset(place, value, width);
      std::memset(memory::shadow(address_of(place)), kInitialised, width);
    }
  }));
}

cudaError_t symbol_variable(const void* symbol, Variable& out) {
  Context& context = Context::get();
  const auto found = context.symbols.find(symbol);
  if (found == context.symbols.end()) return cudaErrorInvalidSymbol;
  FatBinary& binary = *found->second.binary;
  auto& module = binary.modules[current_device];
  try {
    if (!binary.problem.empty()) throw PtxError(binary.problem);
    if (module == nullptr) module = parse_module(std::string(binary.ptx), current_device);
  } catch (const PtxError& e) {
    std::fprintf(stderr, "simgpu: variable %s: %s\n", found->second.name.c_str(), e.what());
    return cudaErrorInvalidSymbol;
  }
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

}  // namespace

extern "C" {

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
cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* p) { return copy_3d(*p, nullptr, false); }
cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* p, cudaStream_t stream) {
  return copy_3d(*p, stream, true);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) { return fill(to, 0, value, bytes, 1, nullptr); }
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return fill(to, 0, value, bytes, 1, stream);
}
cudaError_t cudaMemset2D(void* to, size_t pitch, int value, size_t width, size_t height) {
  return fill(to, pitch, value, width, height, nullptr);
}
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  return fill(to, pitch, value, width, height, stream);
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
