#pragma once

// cuDNN's library and handle, for the files that call it. Only where there is a cudnn.h.

#include <map>
#include <mutex>

#include <cudnn.h>

#include "core/error.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/providers/library.h"

namespace ergon::kernels::cuda {

inline const Library& cudnn_library() {
  static const Library library("ERGON_CUDNN_LIBRARY", "libcudnn.so.9");
  return library;
}

#define ERGON_CUDNN(function) ERGON_FUNCTION(::ergon::kernels::cuda::cudnn_library(), function)

// Calls it; Error of `op` where it fails.
#define ERGON_CUDNN_CHECK(op, function, ...) \
  ::ergon::kernels::cuda::check_cudnn(ERGON_CUDNN(function)(__VA_ARGS__), op, #function)

inline void check_cudnn(cudnnStatus_t status, const char* op, const char* call) {
  ERGON_CHECK(status == CUDNN_STATUS_SUCCESS, "[{}] {}: {}", op, call,
              ERGON_CUDNN(cudnnGetErrorString)(status));
}

// The handle of the current device, made once, set to its current stream; of one thread at a time.
class CudnnSession {
 public:
  explicit CudnnSession(const char* op) : lock_(mutex()) {
    static std::map<int, cudnnHandle_t> handles;
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    handle_ = handles[device];
    if (handle_ == nullptr) {
      ERGON_CUDNN_CHECK(op, cudnnCreate, &handle_);
      handles[device] = handle_;
    }
    ERGON_CUDNN_CHECK(op, cudnnSetStream, handle_, stream());
  }
  cudnnHandle_t handle() const { return handle_; }

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  std::lock_guard<std::mutex> lock_;
  cudnnHandle_t handle_ = nullptr;
};

}  // namespace ergon::kernels::cuda
