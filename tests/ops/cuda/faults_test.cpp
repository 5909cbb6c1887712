// Launches that fail and kernels that run into a fault, planted.

#include <cstdio>
#include <cstdlib>

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "core/cuda/check.h"
#include "core/op_scope.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/pooling.h"
#include "ops/arithmetic.h"
#include "simgpu/simgpu.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

const Device kCuda = Device::cuda();

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(CudaFaults, ALaunchThatFailsNamesTheOpItsOperandsAndTheDevice) {
  const Tensor x = ones({2, 3}, {.device = kCuda});
  const std::string error = test::error_of([&] {
    OpScope scope("softmax", x);
    static int no_kernel = 0;
    cudaLaunchKernel(&no_kernel, dim3(1), dim3(32), nullptr, 0, nullptr);
    CUDA_CHECK_LAUNCH();
  });
  EXPECT_EQ(error.find("[softmax] CUDA error on cuda:0: "), 0u) << error;
  EXPECT_TRUE(contains(error, "cudaErrorInvalidDeviceFunction) from a kernel's launch at faults_test.cpp:"))
      << error;
  EXPECT_TRUE(contains(error, "; operands (2, 3) f32 on cuda:0")) << error;
  EXPECT_TRUE(test::near(ops::add(x, x), full({2, 3}, 2)));  // the device goes on
}

// Pools a plane that is nowhere.
void read_from_nowhere(const Tensor& x, const Tensor& y) {
  OpScope scope("avg_pool2d", x);
  kernels::cuda::avg_pool2d_forward(
      DType::f32, {.planes = 1, .input = {2, 2}, .kernel = {2, 2}, .output = {1, 1}}, nullptr, y.data_ptr());
}

TEST(CudaFaults, AFaultEndsTheContextAndTensorsOnTheCpuStay) {
  const Tensor here = full({3}, 7), x = ones({2, 2}, {.device = kCuda}), y = ones({1}, {.device = kCuda});
  const std::string error = test::error_of([&] {
    read_from_nowhere(x, y);
    synchronize(kCuda);
  });
  EXPECT_TRUE(contains(error, "CUDA error on cuda:0: ")) << error;
  EXPECT_TRUE(contains(error, "cudaErrorIllegalAddress")) << error;
  const std::string again = test::error_of([&] { ops::add(y, y); });
  EXPECT_EQ(again.find("[add] CUDA error on cuda:0: "), 0u) << again;
  EXPECT_TRUE(contains(again, "operands (1,) f32 on cuda:0")) << again;
  EXPECT_TRUE(test::near(ops::add(here, here), full({3}, 14)));
  simgpu::clear_fault();
}

// In a process of its own, whose first launch reads the setting. The simulated GPU works as late as it may.
[[noreturn]] void fault_synchronously() {
  setenv("ERGON_CUDA_SYNC", "1", 1);
  const Tensor x = ones({2, 2}, {.device = kCuda}), y = ones({1}, {.device = kCuda});
  std::fputs(test::error_of([&] { read_from_nowhere(x, y); }).c_str(), stderr);
  std::_Exit(0);
}

TEST(CudaFaultsDeathTest, SynchronousLaunchesNameTheOpAtFault) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  setenv("ERGON_SIMGPU_ORDER", "1", 1);
  EXPECT_EXIT(fault_synchronously(), testing::ExitedWithCode(0),
              "avg_pool2d. CUDA error on cuda:0: .*cudaErrorIllegalAddress.*operands .2, 2. f32 on cuda:0");
  unsetenv("ERGON_SIMGPU_ORDER");
}

}  // namespace
}  // namespace ergon
