#pragma once
#include "exec/warp.h"

namespace simgpu {

// The counters of a launch from what was counted of each instruction.
LaunchCounters summarise(const Program& program, const LaunchCounts& counted);

}  // namespace simgpu
