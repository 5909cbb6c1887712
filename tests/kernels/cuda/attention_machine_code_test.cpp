// The machine code for sm_80 of attention's tensor-core kernels without features: registers and spills as
// ptxas reports them, and the main loops as nvdisasm shows them.

#include "tests/support/machine_code.h"
#include "tests/support/temp_folder.h"

namespace ergon {
namespace {

// How much of the main loop is mma at least, masks and copies included; docs/attention.md has the numbers.
struct Expected {
  const char* kernel;  // part of the mangled name
  double share;
};
constexpr Expected kExpected[] = {
    {"attention_forward_mma_kernelI13__nv_bfloat16Li64E", 0.13},
    {"attention_forward_mma_kernelI13__nv_bfloat16Li128E", 0.19},
    {"attention_backward_mma_kernelI13__nv_bfloat16Li64E", 0.14},
    {"attention_backward_mma_kernelI13__nv_bfloat16Li128E", 0.19},
};

TEST(AttentionMachineCode, NoSpillsAndTheMainLoopsMultiply) {
  const test::TempFolder folder;
  const std::string source = (folder / "attention.cu").string(),
                    cubin = (folder / "attention.cubin").string();
  test::write_text(source, R"(
#include "kernels/cuda/attention/backward.cuh"
#include "kernels/cuda/attention/forward.cuh"
namespace ergon::kernels::cuda::attention_detail {
template __global__ void attention_forward_mma_kernel<bf16, 64, false>(const __grid_constant__ Arguments);
template __global__ void attention_forward_mma_kernel<bf16, 128, false>(const __grid_constant__ Arguments);
template __global__ void attention_backward_mma_kernel<bf16, 64, false>(const __grid_constant__ Arguments);
template __global__ void attention_backward_mma_kernel<bf16, 128, false>(const __grid_constant__ Arguments);
}
)");
  EXPECT_EQ(test::compile_without_spills(source, cubin), 4);
  if (test::nvdisasm().empty()) GTEST_SKIP() << "no nvdisasm: scripts/setup.sh installs it";
  const auto loops = test::main_loops(cubin);
  for (const Expected& expected : kExpected) {
    bool found = false;
    for (const auto& [name, loop] : loops) {
      if (name.find(expected.kernel) == std::string::npos) continue;
      found = true;
      std::printf("%s: %zu mma of %zu instructions in the main loop, %.3f\n", expected.kernel, loop.mma,
                  loop.instructions, loop.share());
      EXPECT_GE(loop.share(), expected.share) << name;
    }
    EXPECT_TRUE(found) << expected.kernel;
  }
}

}  // namespace
}  // namespace ergon
