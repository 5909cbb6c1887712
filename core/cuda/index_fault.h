#pragma once

// Indices that only the device sees and that are out of range. A kernel notes the first one in host memory
// and goes on without touching memory for it; the next synchronisation throws. So a wrong token costs an
// error message, not the process's CUDA context.

#include <cstdint>

namespace ergon::detail {

// In pinned host memory that kernels write to.
struct IndexFault {
  std::uint32_t raised = 0;
  char what[96] = {};  // "[embedding] index"
  std::int64_t index = 0;
  std::int64_t low = 0;  // allowed: [low, high)
  std::int64_t high = 0;
  std::int64_t position = 0;  // of the index in its tensor, row-major
};

// The record as kernels of the current device see it.
IndexFault* index_fault();

// Throws Error and clears the record, if there is something in it.
void throw_index_fault();

}  // namespace ergon::detail

#ifdef __CUDACC__
namespace ergon::device {

// Notes that `index` is outside of [low, high). The first thread wins. `what` is in the device's memory, as
// string literals of kernels are.
__device__ __forceinline__ void raise_index_fault(detail::IndexFault* fault, const char* what,
                                                  std::int64_t index, std::int64_t low, std::int64_t high,
                                                  std::int64_t position) {
  if (atomicCAS_system(&fault->raised, 0u, 1u) != 0) return;
  for (int i = 0; i + 1 < static_cast<int>(sizeof(fault->what)) && what[i] != '\0'; ++i)
    fault->what[i] = what[i];
  fault->index = index;
  fault->low = low;
  fault->high = high;
  fault->position = position;
}

}  // namespace ergon::device
#endif
