// Memory pools. Every allocation is one of its own, so that a use after free shows; a pool only keeps
// accounts.
#include <algorithm>
#include <cstring>
#include <map>

#include "memory.h"
#include "runtime/context.h"

using namespace simgpu;

namespace simgpu {

struct Pool {
  int device = 0;
  u64 used = 0, used_high = 0, release_threshold = 0;
  std::map<cudaMemPoolAttr, int> switches = {{cudaMemPoolReuseFollowEventDependencies, 1},
                                             {cudaMemPoolReuseAllowOpportunistic, 1},
                                             {cudaMemPoolReuseAllowInternalDependencies, 1}};
};

namespace {

Pool default_pools[64];
Pool* current_pools[64];
std::map<u64, std::pair<Pool*, u64>> owners;  // by address of the allocation: pool, bytes

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
  owners[reinterpret_cast<u64>(pointer)] = {&p, bytes};
}
void pool_released(const void* pointer) {
  const auto found = owners.find(reinterpret_cast<u64>(pointer));
  if (found == owners.end()) return;
  found->second.first->used -= found->second.second;
  owners.erase(found);
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
  } else if (attribute != cudaMemPoolAttrReservedMemHigh || number != 0) {
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
    case cudaMemPoolAttrReservedMemCurrent:
      number = pool.used;
      break;
    case cudaMemPoolAttrUsedMemHigh:
    case cudaMemPoolAttrReservedMemHigh:
      number = pool.used_high;
      break;
    default:
      return failed(cudaErrorInvalidValue);
  }
  std::memcpy(value, &number, sizeof number);
  return failed(cudaSuccess);
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  return failed(cudaSuccess);
}  // nothing unused is kept

}  // extern "C"
