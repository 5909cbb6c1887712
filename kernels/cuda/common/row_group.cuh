#pragma once

// Rows that a group of threads reads once and keeps in registers: blockDim = (threads of a row, rows side by
// side). The first kHeld vectors of each thread are held; what a very long row has beyond them is read again.

#include "kernels/cuda/common/reduce.cuh"
#include "kernels/cuda/common/rows.cuh"

namespace ergon::device {

inline constexpr int kRowThreads = 256;     // of a block, unless a row takes more
inline constexpr int kMaxRowThreads = 512;  // leaves 128 registers a thread

// On the host: as few threads as hold the row, at least a warp.
inline dim3 row_block(std::int64_t vectors, int held) {
  unsigned threads = kWarpSize;
  while (threads < kMaxRowThreads && vectors > std::int64_t{threads} * held) threads *= 2;
  return dim3(threads, threads < kRowThreads ? kRowThreads / threads : 1);
}

// The first of the rows that the threads of this block take together, and how far the next ones are.
__device__ __forceinline__ std::int64_t first_row() { return std::int64_t{blockIdx.x} * blockDim.y; }
__device__ __forceinline__ std::int64_t row_step() { return std::int64_t{gridDim.x} * blockDim.y; }

// Calls f(slot, v) for the vectors v of this thread; slot is a constant after unrolling: the register that
// holds the vector, or kHeld for one that is not held.
template <int kHeld, class F>
__device__ __forceinline__ void for_each_vector(int vectors, F&& f) {
#pragma unroll
  for (int slot = 0; slot < kHeld; ++slot) {
    const int v = threadIdx.x + slot * blockDim.x;
    if (v < vectors) f(slot, v);
  }
  for (int v = threadIdx.x + kHeld * blockDim.x; v < vectors; v += blockDim.x) f(kHeld, v);
}

template <class T, int kWidth, int kHeld>
class HeldRow {
 public:
  using Acc = accumulate_t<T>;

  __device__ __forceinline__ void load(const T* row, int vectors) {
#pragma unroll
    for (int slot = 0; slot < kHeld; ++slot) {
      const int v = threadIdx.x + slot * blockDim.x;
      if (v < vectors) set(slot, device::load<kWidth>(row + v * kWidth));
    }
  }
  __device__ __forceinline__ void set(int slot, const Vector<T, kWidth>& vector) {
    if (slot < kHeld) held_[slot] = convert_vector<Stored>(vector);
  }
  // Vector v in the arithmetic type.
  __device__ __forceinline__ Vector<Acc, kWidth> at(const T* row, int slot, int v) const {
    if (slot < kHeld) return convert_vector<Acc>(held_[slot]);
    return convert_vector<Acc>(device::load<kWidth>(row + v * kWidth));
  }

 private:
  // A lone half would take a register anyway (and ptxas spill it).
  using Stored = std::conditional_t<kWidth == 1, Acc, T>;
  Vector<Stored, kWidth> held_[kHeld];
};

// op over the threads of a row for each of N values, in every thread of it. All threads of the block take
// part. `scratch`: N * kWarpSize values of shared memory.
template <class Op, int N, class T>
__device__ __forceinline__ void row_reduce(T (&values)[N], T* scratch, Op op = {}) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = warp_reduce(values[i], op);
  const int warps = blockDim.x / kWarpSize;  // of a row; at most kWarpSize in the block
  if (warps == 1) return;
  const int lane = threadIdx.x % kWarpSize, first = threadIdx.y * warps;
  __syncthreads();  // the scratch may still be read
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) scratch[i * kWarpSize + first + threadIdx.x / kWarpSize] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] =
        warp_reduce(lane < warps ? scratch[i * kWarpSize + first + lane] : Op::template identity<T>(), op);
  }
}
template <class Op, class T>
__device__ __forceinline__ T row_reduce(T value, T* scratch, Op op = {}) {
  T values[1] = {value};
  row_reduce(values, scratch, op);
  return values[0];
}

}  // namespace ergon::device
