// The machine code of the tensor-core kernels for sm_80: registers and spills as ptxas reports them, and the
// main loops as nvdisasm shows them.

#include "kernels/cuda/gemm/kernel.h"
#include "tests/support/machine_code.h"
#include "tests/support/temp_folder.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

// A tensor-core kernel by its mangled name: ... kernelINS2_8Bf16MathELi2ELb1ELb0EE ...
struct Kernel {
  int tile = -1;
  std::string layout;
};
Kernel kernel_named(const std::string& symbol) {
  static const std::regex pattern("tensor_core_gemm_kernelI.*MathELi(\\d)ELb([01])ELb([01])E");
  std::smatch match;
  if (!std::regex_search(symbol, match, pattern)) return {};
  return {std::stoi(match[1]),
          std::string(match[2] == "1" ? "N" : "T") + std::string(match[3] == "1" ? "T" : "N")};
}

class GemmMachineCode : public testing::TestWithParam<const char*> {};

TEST_P(GemmMachineCode, NoSpillsAndHalfOfTheMainLoopMultiplies) {
  const std::string source = GetParam();
  const test::TempFolder folder;
  const std::string cubin = (folder / (source + ".cubin")).string();
  EXPECT_GE(test::compile_without_spills(
                std::string(ERGON_SOURCE_DIR) + "/kernels/cuda/gemm/" + source + ".cu", cubin),
            12);

  if (test::nvdisasm().empty()) GTEST_SKIP() << "no nvdisasm: scripts/setup.sh installs it";
  int loops = 0;
  for (const auto& [name, loop] : test::main_loops(cubin)) {
    const Kernel kernel = kernel_named(name);
    if (kernel.tile < 0) continue;
    ++loops;
    const double share = loop.share();
    std::printf("%-10s %s %s: mma are %.3f of the main loop\n", source.c_str(), kTiles[kernel.tile].name,
                kernel.layout.c_str(), share);
    if (kTiles[kernel.tile].warp_rows * kTiles[kernel.tile].warp_cols < 64 * 64) continue;
    EXPECT_GE(share, 0.5) << name;
  }
  EXPECT_GE(loops, 12);
}

INSTANTIATE_TEST_SUITE_P(Kernels, GemmMachineCode, testing::Values("bf16", "f16", "tf32", "split_tf32"),
                         [](const auto& kernels) { return std::string(kernels.param); });

}  // namespace
}  // namespace ergon::kernels::cuda::gemm_detail
