#include "core/cuda/check.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "core/op_scope.h"

namespace ergon::detail {

void throw_cuda_error(cudaError_t status, const char* call, const char* file, int line) {
  cudaGetLastError();  // a later check must not report this one again
  int device = -1;
  cudaGetDevice(&device);
  const std::string operands = OpScope::current_operands();
  const std::string message = fmt::format(
      "[{}] CUDA error on cuda:{}: {} ({}) from {} at {}:{}{}{}", OpScope::current(), device,
      cudaGetErrorString(status), cudaGetErrorName(status), call,
      std::filesystem::path(file).filename().string(), line, operands.empty() ? "" : "; operands ", operands);
  if (status == cudaErrorMemoryAllocation) throw OutOfMemoryError(message);
  throw Error(message);
}

void check_launch(const char* file, int line) {
  static const bool synchronous = [] {
    const char* setting = std::getenv("ERGON_CUDA_SYNC");
    return setting != nullptr && std::strcmp(setting, "0") != 0;
  }();
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess && synchronous) status = cudaDeviceSynchronize();
  if (status != cudaSuccess) throw_cuda_error(status, "a kernel's launch", file, line);
}

}  // namespace ergon::detail
