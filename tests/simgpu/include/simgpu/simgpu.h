#pragma once
// What the simulated GPU tells a test: counters of launches, reports of the checkers, settings.
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "counters.h"
#include "settings.h"

namespace simgpu {

struct LaunchRecord {
  std::string kernel;  // demangled
  Dim3 grid, block;
  u32 shared_bytes = 0;     // static and dynamic
  int registers = 0;        // a thread, as ptxas gave them out; 0: the program holds only PTX
  int resident_blocks = 0;  // of a multiprocessor at a time
  Counters counters;
  std::vector<Region> loops;  // in the order of the text: an inner loop before the one around it
  std::vector<Region> lines;  // with settings().count_lines
};
// The innermost loop that holds most mma instructions. Throws std::logic_error when no loop holds any.
const Region& main_loop(const LaunchRecord& launch);

// Of this process so far, oldest first; the last 4,096.
const std::deque<LaunchRecord>& launches();
void clear_launches();

struct FaultRecord {
  FaultKind kind;
  std::string text;
};
// The fault that made the context unusable, if one did.
std::optional<FaultRecord> last_fault();
// Forgets the fault: the next call to the runtime works again, as after a new start of the process. Memory
// stays.
void clear_fault();

// Allocations that nobody has freed; what is printed at exit.
std::vector<std::string> leaks();

}  // namespace simgpu
