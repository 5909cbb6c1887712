#include "optim/tensor_list.h"

#include <cstring>

namespace ergon::optim {

void TensorList::add(kernels::OptimizerTensor tensor) {
  tensor.first_chunk = chunks_;
  chunks_ += (tensor.numel + kernels::kOptimizerChunk - 1) / kernels::kOptimizerChunk;
  if (tensor.numel > 0) tensors_.push_back(tensor);
}

kernels::OptimizerTensors TensorList::get() {
  kernels::OptimizerTensors result{.list = tensors_, .chunks = chunks_};
  if (device_.is_cpu() || tensors_.empty()) return result;
  const auto bytes = static_cast<std::int64_t>(tensors_.size() * sizeof(tensors_[0]));
  const Tensor pinned = empty({bytes}, {DType::u8}).pin_memory();
  std::memcpy(pinned.data_ptr(), tensors_.data(), static_cast<std::size_t>(bytes));
  on_device_ = pinned.to(device_, /*non_blocking=*/true);
  result.device = static_cast<const kernels::OptimizerTensor*>(on_device_.data_ptr());
  return result;
}

}  // namespace ergon::optim
