#pragma once

// What one kernel did, by the simulated GPU's counters.

#include <gtest/gtest.h>

#include "core/stream.h"
#include "simgpu/simgpu.h"

namespace ergon::test {

// Of the one launch that `run` makes on the CUDA device.
template <class F>
simgpu::Counters counters_of(const F& run) {
  synchronize(Device::cuda());
  simgpu::clear_launches();
  run();
  synchronize(Device::cuda());
  EXPECT_EQ(simgpu::launches().size(), 1u);
  return simgpu::launches().back().counters;
}

}  // namespace ergon::test
