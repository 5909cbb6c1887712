#pragma once

#include "core/tensor.h"

namespace ergon::ops {

// What a tensor's elements would become in a narrower dtype.
struct NumericsSummary {
  double amax = 0;       // of the finite elements
  double underflow = 0;  // share of the elements other than 0 that become 0 or subnormal
  double overflow = 0;   // share of them that become infinite
  std::int64_t infinite = 0;
  std::int64_t nan = 0;
};

// Collects them over tensors of one device, one slot after another, without waiting for the device.
class NumericsCounter {
 public:
  // `target`: the narrower dtype, bf16 or f16, else Error.
  NumericsCounter(std::int64_t slots, DType target, Device device);
  // Adds the elements of x (floating point, any layout) to a slot, in one pass.
  void add(std::int64_t slot, const Tensor& x);
  // Of every slot, which starts again from nothing. Waits for the device.
  std::vector<NumericsSummary> take();

 private:
  float smallest_, largest_;  // of the target's normal numbers
  Tensor counts_;             // (slots, 6) i64: kernels::NumericsCounts
};

}  // namespace ergon::ops
