// The machine code of the tensor-core kernels for sm_80: registers and spills as ptxas reports them, and the
// main loops as nvdisasm shows them.

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cuda/gemm/kernel.h"
#include "tests/support/temp_folder.h"

namespace ergon::kernels::cuda::gemm_detail {
namespace {

namespace fs = std::filesystem;

std::string output_of(const std::string& command) {
  std::string output;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return output;
  std::array<char, 4096> buffer;
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) output += buffer.data();
  EXPECT_EQ(pclose(pipe), 0) << command << '\n' << output;
  return output;
}

// In the PATH, beside the compiler, or where scripts/setup.sh puts it; empty: nowhere.
std::string nvdisasm() {
  if (std::system("command -v nvdisasm >/dev/null") == 0) return "nvdisasm";
  for (const fs::path& path : {fs::path(ERGON_NVCC).parent_path() / "nvdisasm",
                               fs::path(ERGON_SOURCE_DIR) / "build/tools/nvidia/cu13/bin/nvdisasm"}) {
    if (fs::exists(path)) return path.string();
  }
  return {};
}

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

// The share of mma in the shortest loop with any: the main loop, the other one has the edges' copies too.
std::map<std::string, double> mma_shares(const std::string& disassembly) {
  struct Function {
    std::vector<std::string> instructions;
    std::map<std::string, std::size_t> labels;
  };
  std::map<std::string, Function> functions;
  std::istringstream lines(disassembly);
  Function* function = nullptr;
  static const std::regex branch("BRA.*`\\((\\.L_x_\\d+)\\)");
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(".text.", 0) == 0) {
      function = &functions[line.substr(6, line.find(':') - 6)];
    } else if (function != nullptr && line.rfind(".L_x_", 0) == 0) {
      function->labels[line.substr(0, line.find(':'))] = function->instructions.size();
    } else if (const std::size_t end = line.find(';'); function != nullptr && end != std::string::npos) {
      const std::size_t begin = line.find("*/");  // after the address
      if (begin != std::string::npos)
        function->instructions.push_back(line.substr(begin + 2, end - begin - 2));
    }
  }
  std::map<std::string, double> shares;
  for (const auto& [name, f] : functions) {
    std::size_t shortest = f.instructions.size() + 1;
    for (std::size_t i = 0; i < f.instructions.size(); ++i) {
      std::smatch match;
      if (f.instructions[i].find("BRA") == std::string::npos
          || !std::regex_search(f.instructions[i], match, branch)) {
        continue;
      }
      const auto label = f.labels.find(match[1]);
      if (label == f.labels.end() || label->second >= i) continue;
      const std::size_t length = i + 1 - label->second;
      std::size_t mma = 0;
      for (std::size_t k = label->second; k <= i; ++k) {
        mma += f.instructions[k].find("HMMA") != std::string::npos ? 1 : 0;
      }
      if (mma > 0 && length < shortest) {
        shortest = length;
        shares[name] = static_cast<double>(mma) / static_cast<double>(length);
      }
    }
  }
  return shares;
}

class GemmMachineCode : public testing::TestWithParam<const char*> {};

TEST_P(GemmMachineCode, NoSpillsAndHalfOfTheMainLoopMultiplies) {
  const std::string source = GetParam();
  const test::TempFolder folder;
  const std::string cubin = (fs::path(folder.path()) / (source + ".cubin")).string();
  const std::string report = output_of(
      std::string(ERGON_NVCC) + " -std=c++20 --expt-relaxed-constexpr -O3 -DFMT_CONSTEVAL= "
      + "-DFMT_USE_CONSTEXPR=1 -cubin -arch=sm_80 -Xptxas -v -I" + ERGON_SOURCE_DIR + " -I" + ERGON_EIGEN_DIR
      + " -o " + cubin + " " + ERGON_SOURCE_DIR + "/kernels/cuda/gemm/" + source + ".cu");
  const std::regex spill("(\\d+) bytes spill stores, (\\d+) bytes spill loads");
  const std::regex used("Used (\\d+) registers");
  int kernels = 0;
  std::istringstream lines(report);
  std::string symbol;
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (line.find("Compiling entry function") != std::string::npos) symbol = line;
    if (std::regex_search(line, match, spill)) {
      EXPECT_EQ(match[1], "0") << symbol << ": " << line;
      EXPECT_EQ(match[2], "0") << symbol << ": " << line;
    } else if (std::regex_search(line, match, used)) {
      EXPECT_LE(std::stoi(match[1]), 255) << symbol;
      ++kernels;
    }
  }
  EXPECT_GE(kernels, 12) << report;

  if (nvdisasm().empty()) GTEST_SKIP() << "no nvdisasm: scripts/setup.sh installs it";
  int loops = 0;
  for (const auto& [name, share] : mma_shares(output_of(nvdisasm() + " -c " + cubin))) {
    const Kernel kernel = kernel_named(name);
    if (kernel.tile < 0) continue;
    ++loops;
    std::printf("%-10s %s %s: mma are %.3f of the main loop\n", source.c_str(), kTiles[kernel.tile].name,
                kernel.layout.c_str(), share);
    if (kTiles[kernel.tile].warp_rows * kTiles[kernel.tile].warp_cols < 64 * 64) continue;
    // fp32: operands across K are loaded word by word, and splitting takes five instructions a word.
    const bool half = source == "bf16" || source == "f16" || (source == "tf32" && kernel.layout == "NT");
    EXPECT_GE(share, half ? 0.5 : source == "tf32" ? 0.4 : 0.31) << name;
  }
  EXPECT_GE(loops, 12);
}

INSTANTIATE_TEST_SUITE_P(Kernels, GemmMachineCode, testing::Values("bf16", "f16", "tf32", "split_tf32"),
                         [](const auto& kernels) { return std::string(kernels.param); });

}  // namespace
}  // namespace ergon::kernels::cuda::gemm_detail
