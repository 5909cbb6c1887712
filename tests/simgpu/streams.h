#pragma once
// Two kernels, and adversarial orders of streams, for the tests of the runtime.
#include "settings.h"
#include "support.h"

namespace {

__global__ void fill(int* out, int value, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = value;
}
__global__ void add(const int* in, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] += in[i];
}
constexpr int kSize = 1000;  // elements

// Streams run in an order drawn from the seed while one of these lives.
struct Order {
  explicit Order(uint64_t seed) { simgpu::settings().order_seed = seed; }
  ~Order() {
    cudaDeviceSynchronize();
    simgpu::settings().order_seed = 0;
  }
};
// Calls f with many orders; how often it returned true.
template <class F>
int count_orders(F&& f) {
  int count = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Order order(seed);
    count += f() ? 1 : 0;
  }
  return count;
}

}  // namespace
