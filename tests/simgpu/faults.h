#pragma once
// What the tests of the checkers look at: the report of a planted bug, and the silence of its correct twin.
#include <fstream>
#include <functional>
#include <optional>
#include <source_location>

#include "support.h"

// Launches and waits; what the checkers said, if anything. The context works again afterwards.
inline std::optional<simgpu::FaultRecord> run(const std::function<void()>& launch) {
  launch();
  const cudaError_t error = cudaDeviceSynchronize();
  const std::optional<simgpu::FaultRecord> fault = simgpu::last_fault();
  EXPECT_EQ(error != cudaSuccess, fault.has_value()) << cudaGetErrorString(error);
  simgpu::clear_fault();
  return fault;
}
inline void expect_quiet(const std::function<void()>& launch) {
  const auto fault = run(launch);
  EXPECT_FALSE(fault) << fault->text;
}

// "; kernel ... at file.cu:12, block (0, 0, 0), thread (1, 0, 0)": the line is the one that ends in "// bug:
// " and `bug`.
struct Place {
  const char* kernel;
  const char* bug;
  const char* thread = "block (0, 0, 0), thread (";
};
// Every piece must stand in the report as well.
inline void expect_fault(simgpu::FaultKind kind, const Place& place, std::vector<std::string> pieces,
                         const std::function<void()>& launch,
                         const std::source_location& test = std::source_location::current()) {
  const auto fault = run(launch);
  ASSERT_TRUE(fault) << "nothing was reported; line " << test.line();
  EXPECT_EQ(fault->kind, kind) << fault->text;
  std::string file = test.file_name();
  file = file.substr(file.rfind('/'));
  std::ifstream source(SIMGPU_TEST_DIR + file);
  int line = 0, found = 0;
  for (std::string text; std::getline(source, text);) {
    ++line;
    if (text.ends_with(std::string("// bug: ") + place.bug)) found = line;
  }
  ASSERT_NE(0, found) << "no line is marked \"" << place.bug << '"';
  pieces.push_back(file + ":" + std::to_string(found) + ", " + place.thread);
  pieces.push_back(std::string("(anonymous namespace)::") + place.kernel);
  for (const std::string& piece : pieces)
    EXPECT_NE(fault->text.find(piece), std::string::npos) << piece << " is not in: " << fault->text;
}
