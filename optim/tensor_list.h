#pragma once

// The tensors of one pass over many, as the kernels take them. Internal to optim.

#include <vector>

#include "core/tensor.h"
#include "kernels/optimizer.h"

namespace ergon::optim {

class TensorList {
 public:
  // Of tensors on `device`.
  explicit TensorList(Device device) : device_(device) {}

  // first_chunk is filled in.
  void add(kernels::OptimizerTensor tensor);
  // For one launch; the list must outlive it, not the kernel. On CUDA the list goes to the device, without
  // waiting for it.
  kernels::OptimizerTensors get();
  Device device() const { return device_; }

 private:
  Device device_;
  std::vector<kernels::OptimizerTensor> tensors_;
  std::int64_t chunks_ = 0;
  Tensor on_device_;  // the counter of blocks, then the bytes of tensors_
};

}  // namespace ergon::optim
