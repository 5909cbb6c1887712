// Memory pools. Every allocation is one of its own, so that a use after free shows; a pool only keeps
// accounts.
#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <vector>

#include "memory.h"
#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace simgpu {

struct Pool {
  int device = 0;
  u64 open_to = 0;  // other devices that may access its memory, a bit each
  // `reserved` beyond what is used is kept at a free until the device is waited for, and then up to the
  // threshold.
  u64 used = 0, used_high = 0, reserved = 0, reserved_high = 0, release_threshold = 0;
  std::map<cudaMemPoolAttr, int> switches = {{cudaMemPoolReuseFollowEventDependencies, 1},
                                             {cudaMemPoolReuseAllowOpportunistic, 1},
                                             {cudaMemPoolReuseAllowInternalDependencies, 1}};

  void keep(u64 bytes) { reserved = std::max(used, std::min(reserved, bytes)); }
};

namespace {

Pool default_pools[64];
Pool* current_pools[64];
std::map<u64, std::pair<Pool*, u64>> owners;  // by address of the allocation: pool, bytes

std::vector<Pool*>& made_pools() {
  static auto* const list = new std::vector<Pool*>;
  return *list;
}
std::vector<Pool*> all_pools() {
  std::vector<Pool*> list = made_pools();
  for (int d = 0; d < 64; ++d) {
    default_pools[d].device = d;
    if (default_pools[d].reserved > 0) list.push_back(&default_pools[d]);
  }
  return list;
}
Pool& pool_of(int device) {
  default_pools[device].device = device;
  return current_pools[device] != nullptr ? *current_pools[device] : default_pools[device];
}
Pool* pool_of(cudaMemPool_t handle) { return reinterpret_cast<Pool*>(handle); }
cudaMemPool_t handle_of(Pool& pool) { return reinterpret_cast<cudaMemPool_t>(&pool); }

}  // namespace

void pool_allocated(Pool* pool, int device, const void* pointer, u64 bytes) {
  Pool& p = pool != nullptr ? *pool : pool_of(device);
  p.used += bytes;
  p.used_high = std::max(p.used_high, p.used);
  p.reserved = std::max(p.reserved, p.used);
  p.reserved_high = std::max(p.reserved_high, p.reserved);
  owners[reinterpret_cast<u64>(pointer)] = {&p, bytes};
}
void pool_released(const void* pointer) {
  const auto found = owners.find(reinterpret_cast<u64>(pointer));
  if (found == owners.end()) return;
  found->second.first->used -= found->second.second;
  owners.erase(found);
}
void pools_synchronised() {
  for (Pool* pool : all_pools()) pool->keep(pool->release_threshold);
}
u64 pool_unused(int device) {
  u64 bytes = 0;
  for (const Pool* pool : all_pools()) bytes += pool->device == device ? pool->reserved - pool->used : 0;
  return bytes;
}
u64 pool_open_to(const Pool* pool, int device) { return (pool != nullptr ? *pool : pool_of(device)).open_to; }
void pools_reset(int device) {
  std::erase_if(owners, [&](const auto& entry) { return entry.second.first->device == device; });
  for (Pool* pool : all_pools()) {
    if (pool->device == device) pool->used = pool->reserved = 0;
  }
}

}  // namespace simgpu

extern "C" {

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* out, int device) {
  default_pools[device].device = device;
  *out = handle_of(default_pools[device]);
  return failed(cudaSuccess);
}
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* out, int device) {
  *out = handle_of(pool_of(device));
  return failed(cudaSuccess);
}
cudaError_t cudaDeviceSetMemPool(int device, cudaMemPool_t pool) {
  if (pool == nullptr || pool_of(pool)->device != device) return failed(cudaErrorInvalidValue);
  current_pools[device] = pool_of(pool);
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* out, const cudaMemPoolProps* properties) {
  if (properties->allocType != cudaMemAllocationTypePinned
      || properties->location.type != cudaMemLocationTypeDevice)
    return failed(cudaErrorInvalidValue);
  auto* pool = new Pool;
  pool->device = properties->location.id;
  made_pools().push_back(pool);
  *out = handle_of(*pool);
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t handle) {
  Pool* pool = pool_of(handle);
  const std::lock_guard lock(Context::get().mutex);
  if (pool >= default_pools && pool < default_pools + 64) return failed(cudaErrorInvalidValue);
  for (Pool*& current : current_pools) {
    if (current == pool) current = nullptr;
  }
  std::erase_if(owners, [&](const auto& entry) { return entry.second.first == pool; });
  std::erase(made_pools(), pool);
  delete pool;
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void* value) {
  Pool& pool = *pool_of(handle);
  u64 number = 0;
  if (const auto found = pool.switches.find(attribute); found != pool.switches.end()) {
    std::memcpy(&found->second, value, sizeof(int));
    return failed(cudaSuccess);
  }
  std::memcpy(&number, value, sizeof number);
  if (attribute == cudaMemPoolAttrReleaseThreshold) {
    pool.release_threshold = number;
  } else if (attribute == cudaMemPoolAttrUsedMemHigh && number == 0) {
    pool.used_high = pool.used;
  } else if (attribute == cudaMemPoolAttrReservedMemHigh && number == 0) {
    pool.reserved_high = pool.reserved;
  } else {
    return failed(cudaErrorInvalidValue);
  }
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void* value) {
  const Pool& pool = *pool_of(handle);
  if (const auto found = pool.switches.find(attribute); found != pool.switches.end()) {
    std::memcpy(value, &found->second, sizeof(int));
    return failed(cudaSuccess);
  }
  u64 number = 0;
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold:
      number = pool.release_threshold;
      break;
    case cudaMemPoolAttrUsedMemCurrent:
      number = pool.used;
      break;
    case cudaMemPoolAttrUsedMemHigh:
      number = pool.used_high;
      break;
    case cudaMemPoolAttrReservedMemCurrent:
      number = pool.reserved;
      break;
    case cudaMemPoolAttrReservedMemHigh:
      number = pool.reserved_high;
      break;
    default:
      return failed(cudaErrorInvalidValue);
  }
  std::memcpy(value, &number, sizeof number);
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes) {
  pool_of(pool)->keep(bytes);
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolSetAccess(cudaMemPool_t handle, const cudaMemAccessDesc* list, size_t count) {
  const std::lock_guard lock(Context::get().mutex);
  Pool& pool = *pool_of(handle);
  u64 open_to = pool.open_to;
  for (const cudaMemAccessDesc& d : std::span(list, count)) {
    if (d.location.type != cudaMemLocationTypeDevice || d.location.id < 0
        || d.location.id >= settings().devices)
      return failed(cudaErrorInvalidValue);
    const bool open = d.flags == cudaMemAccessFlagsProtReadWrite;
    if (d.location.id == pool.device && !open) return failed(cudaErrorInvalidValue);
    open_to = (open_to & ~(u64{1} << d.location.id)) | u64{open} << d.location.id;
  }
  pool.open_to = open_to;
  for (const auto& [address, owner] : owners) {
    if (owner.first == &pool) memory::set_open_to(reinterpret_cast<const void*>(address), open_to);
  }
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolGetAccess(cudaMemAccessFlags* flags, cudaMemPool_t handle, cudaMemLocation* location) {
  const Pool& pool = *pool_of(handle);
  const bool open = location->id == pool.device || (pool.open_to >> location->id & 1) != 0;
  *flags = open ? cudaMemAccessFlagsProtReadWrite : cudaMemAccessFlagsProtNone;
  return failed(cudaSuccess);
}

}  // extern "C"
