#include "ops/gemm.h"

#include "core/tensor.h"
#include "ops/dispatch.h"
#include "ops/matmul.h"

namespace ergon::ops::detail {

void gemm(const Device& device, kernels::GemmParams params) {
  params.allow_tf32 = allow_tf32();
  Tensor workspace;
#ifdef ERGON_CUDA
  if (device.is_cuda()) {
    const DeviceGuard guard(device);
    if (const std::int64_t bytes = kernels::cuda::gemm_workspace(params); bytes > 0) {
      workspace = empty({bytes}, {DType::u8, device});
      params.workspace = workspace.data_ptr();
    }
  }
#endif
  ERGON_KERNEL(device, gemm, params);
}

}  // namespace ergon::ops::detail
