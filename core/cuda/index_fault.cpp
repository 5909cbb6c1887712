#include "core/cuda/index_fault.h"

#include <atomic>
#include <cstdlib>

#include "core/cuda/check.h"
#include "core/error.h"

namespace ergon::detail {
namespace {

std::atomic<IndexFault*> record = nullptr;

}  // namespace

IndexFault* index_fault() {
  static IndexFault* const made = [] {
    void* memory = nullptr;
    CUDA_CHECK(cudaHostAlloc(&memory, sizeof(IndexFault), cudaHostAllocMapped | cudaHostAllocPortable));
    record = new (memory) IndexFault;
    std::atexit([] { cudaFreeHost(record.exchange(nullptr)); });
    return record.load();
  }();
  void* address = nullptr;
  CUDA_CHECK(cudaHostGetDevicePointer(&address, made, 0));
  return static_cast<IndexFault*>(address);
}

void throw_index_fault() {
  IndexFault* const fault = record;
  if (fault == nullptr || fault->raised == 0) return;
  const IndexFault found = *fault;
  *fault = {};
  ERGON_FAIL("{} {} at position {}: expected one in [{}, {})", found.what, found.index, found.position,
             found.low, found.high);
}

}  // namespace ergon::detail
