#pragma once

// Checks of calls of the CUDA runtime. For core/cuda and kernels/cuda.

#include <cuda_runtime_api.h>

namespace ergon::detail {

// Throws Error, or OutOfMemoryError, that names the call, the op that runs (core/op_scope.h), the device and
// the place.
[[noreturn]] void throw_cuda_error(cudaError_t status, const char* call, const char* file, int line);

// After a launch: what it said; with ERGON_CUDA_SYNC=1 in the environment also how the kernel ended.
void check_launch(const char* file, int line);

}  // namespace ergon::detail

#define CUDA_CHECK(call)                                                               \
  do {                                                                                 \
    const cudaError_t cuda_check_status = (call);                                      \
    if (cuda_check_status != cudaSuccess) [[unlikely]] {                               \
      ::ergon::detail::throw_cuda_error(cuda_check_status, #call, __FILE__, __LINE__); \
    }                                                                                  \
  } while (false)

// To stand after every <<<>>>.
#define CUDA_CHECK_LAUNCH() ::ergon::detail::check_launch(__FILE__, __LINE__)
