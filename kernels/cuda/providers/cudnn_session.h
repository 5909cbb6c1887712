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

inline void check_cudnn(cudnnStatus_t status, const char* op, const char* call) {
  static const auto error_string = [] {
    decltype(&cudnnGetErrorString) function;
    cudnn_library().find("cudnnGetErrorString", function);
    return function;
  }();
  ERGON_CHECK(status == CUDNN_STATUS_SUCCESS, "[{}] {}: {}", op, call, error_string(status));
}

// The handle of the current device, made once, set to its current stream; of one thread at a time.
class CudnnSession {
 public:
  explicit CudnnSession(const char* op) : lock_(mutex()) {
    static const Calls calls;
    static std::map<int, cudnnHandle_t> handles;
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    handle_ = handles[device];
    if (handle_ == nullptr) {
      check_cudnn(calls.create(&handle_), op, "cudnnCreate");
      handles[device] = handle_;
    }
    check_cudnn(calls.set_stream(handle_, stream()), op, "cudnnSetStream");
  }
  cudnnHandle_t handle() const { return handle_; }

 private:
  struct Calls {
    decltype(&cudnnCreate) create;
    decltype(&cudnnSetStream) set_stream;

    Calls() {
      cudnn_library().find("cudnnCreate", create);
      cudnn_library().find("cudnnSetStream", set_stream);
    }
  };
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  std::lock_guard<std::mutex> lock_;
  cudnnHandle_t handle_ = nullptr;
};

}  // namespace ergon::kernels::cuda
