#include "optim/tensor_list.h"

#include <cstring>

namespace ergon::optim {

void TensorList::add(kernels::OptimizerTensor tensor) {
  tensor.first_chunk = chunks_;
  chunks_ += (tensor.numel + kernels::kOptimizerChunk - 1) / kernels::kOptimizerChunk;
  if (tensor.numel > 0) tensors_.push_back(tensor);
}

kernels::OptimizerTensors TensorList::get() {
  constexpr std::int64_t kCounter = 16;  // bytes, so that the list stays aligned
  kernels::OptimizerTensors result{.list = tensors_, .chunks = chunks_};
  if (device_.is_cpu()) return result;
  const auto bytes = static_cast<std::int64_t>(tensors_.size() * sizeof(kernels::OptimizerTensor));
  const Tensor pinned = empty({kCounter + bytes}, {DType::u8}).pin_memory();
  char* to = static_cast<char*>(pinned.data_ptr());
  std::memset(to, 0, kCounter);
  std::memcpy(to + kCounter, tensors_.data(), static_cast<std::size_t>(bytes));
  on_device_ = pinned.to(device_, /*non_blocking=*/true);
  char* on_device = static_cast<char*>(on_device_.data_ptr());
  result.blocks_done = reinterpret_cast<unsigned*>(on_device);
  result.device = reinterpret_cast<const kernels::OptimizerTensor*>(on_device + kCounter);
  return result;
}

}  // namespace ergon::optim
