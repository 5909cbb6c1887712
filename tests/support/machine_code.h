#pragma once

// Kernels as machine code for sm_80: what ptxas reports of them, and how much of their main loops multiplies.
// For cuda_tests, which know the compiler's place.

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

namespace ergon::test {

inline std::string output_of(const std::string& command) {
  std::string output;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return output;
  std::array<char, 4096> buffer;
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) output += buffer.data();
  EXPECT_EQ(pclose(pipe), 0) << command << '\n' << output;
  return output;
}

// In the PATH, beside the compiler, or where scripts/setup.sh puts it; empty: nowhere.
inline std::string nvdisasm() {
  if (std::system("command -v nvdisasm >/dev/null") == 0) return "nvdisasm";
  namespace fs = std::filesystem;
  for (const fs::path& path : {fs::path(ERGON_NVCC).parent_path() / "nvdisasm",
                               fs::path(ERGON_SOURCE_DIR) / "build/tools/nvidia/cu13/bin/nvdisasm"}) {
    if (fs::exists(path)) return path.string();
  }
  return {};
}

// Compiles `source` into `cubin`; expects no spills and at most 255 registers. Returns the number of kernels.
inline int compile_without_spills(const std::string& source, const std::string& cubin) {
  const std::string report =
      output_of(std::string(ERGON_NVCC) + " -std=c++20 --expt-relaxed-constexpr -O3 -DFMT_CONSTEVAL= "
                + "-DFMT_USE_CONSTEXPR=1 -cubin -arch=sm_80 -Xptxas -v -I" + ERGON_SOURCE_DIR + " -I"
                + ERGON_EIGEN_DIR + " -o " + cubin + " " + source);
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
  return kernels;
}

// The loop of each kernel, by mangled name, in which the share of mma is largest: the main loop, others have
// the edges' copies too.
struct MainLoop {
  std::size_t mma = 0, instructions = 0;
  double share() const { return static_cast<double>(mma) / static_cast<double>(instructions); }
};
inline std::map<std::string, MainLoop> main_loops(const std::string& cubin) {
  struct Function {
    std::vector<std::string> instructions;
    std::map<std::string, std::size_t> labels;
  };
  std::map<std::string, Function> functions;
  std::istringstream lines(output_of(nvdisasm() + " -c " + cubin));
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
  std::map<std::string, MainLoop> loops;
  for (const auto& [name, f] : functions) {
    for (std::size_t i = 0; i < f.instructions.size(); ++i) {
      std::smatch match;
      if (f.instructions[i].find("BRA") == std::string::npos
          || !std::regex_search(f.instructions[i], match, branch)) {
        continue;
      }
      const auto label = f.labels.find(match[1]);
      if (label == f.labels.end() || label->second >= i) continue;
      MainLoop loop{.mma = 0, .instructions = i + 1 - label->second};
      for (std::size_t k = label->second; k <= i; ++k)
        loop.mma += f.instructions[k].find("HMMA") != std::string::npos ? 1 : 0;
      const auto known = loops.find(name);
      if (loop.mma > 0 && (known == loops.end() || loop.share() > known->second.share())) loops[name] = loop;
    }
  }
  return loops;
}

}  // namespace ergon::test
