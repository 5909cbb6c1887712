#pragma once
#include <string>

#include "module.h"

namespace simgpu {

void record_launch(const LaunchConfig& config, const Kernel& code, int registers, LaunchCounters counters);
void record_fault(const Fault& fault);

}  // namespace simgpu
