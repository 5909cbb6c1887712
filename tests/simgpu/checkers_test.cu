// For each checker a planted bug that must be found, with the place named, and a correct twin that must be
// quiet. The race detectors' are in races_test.cu.
#undef NDEBUG  // assert stays in an optimised build
#include <cassert>

#include "faults.h"

namespace {

using simgpu::FaultKind;

// The rest of 16 bytes is filled with zeros and not read: it may lie outside the allocation.
__global__ void copy_part(const char* in, int4* out, int bytes) {
  __shared__ int4 tile[32];
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(&tile[threadIdx.x]));
  const char* const from = in + 16 * threadIdx.x;
  const int part = threadIdx.x == 31 ? bytes : 16;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(part));  // bug: last part
  asm volatile("cp.async.wait_all;" ::: "memory");
  out[threadIdx.x] = tile[threadIdx.x];
}
TEST(Checkers, PartialAsyncCopy) {
  DeviceArray<char> in(std::vector<char>(31 * 16 + 12, 1));
  DeviceArray<int4> out(32);
  expect_quiet([&] { copy_part<<<1, 32>>>(in, out, 12); });
  EXPECT_EQ(0x01010101, out.host()[31].z);
  EXPECT_EQ(0, out.host()[31].w);
  expect_fault(FaultKind::kOutOfBounds, {"copy_part", "last part", "block (0, 0, 0), thread (31, 0, 0)"},
               {"reads 13 bytes of global memory at 0x", "0 bytes past the end of cudaMalloc"},
               [&] { copy_part<<<1, 32>>>(in, out, 13); });
}

__global__ void write_at(int* out, int offset) {
  out[threadIdx.x + offset] = 1;  // bug: write_at
}
TEST(Checkers, GlobalOutOfBounds) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kOutOfBounds, {"write_at", "write_at", "block (0, 0, 0), thread (31, 0, 0)"},
               {"writes 4 bytes of global memory at 0x", "0 bytes past the end of cudaMalloc", "128 bytes"},
               [&] { write_at<<<1, 32>>>(out, 1); });
  expect_quiet([&] { write_at<<<1, 32>>>(out, 0); });
}
__global__ void write_if_given(int* out) {
  if (out != nullptr) out[threadIdx.x] = 1;
}
TEST(Checkers, NullPointer) {
  expect_fault(FaultKind::kOutOfBounds, {"write_at", "write_at", "block (0, 0, 0), thread (0, 0, 0)"},
               {"global memory at 0x0: not device memory"}, [] { write_at<<<1, 1>>>(nullptr, 0); });
  expect_quiet([] { write_if_given<<<1, 1>>>(nullptr); });
  DeviceArray<int> out(32);
  expect_quiet([&] { write_if_given<<<1, 32>>>(out); });
}
__global__ void count_at(int* out, int offset) {
  atomicAdd(out + offset, 1);  // bug: count_at
}
TEST(Checkers, AtomicOutOfBounds) {
  DeviceArray<int> out(std::vector<int>(32, 0));
  expect_fault(FaultKind::kOutOfBounds, {"count_at", "count_at"},
               {"atomically updates 4 bytes of global memory at 0x", "0 bytes past the end of cudaMalloc"},
               [&] { count_at<<<1, 32>>>(out, 32); });
  expect_quiet([&] { count_at<<<1, 32>>>(out, 31); });
}
TEST(Checkers, UseAfterFree) {
  int *out, *pooled;
  CUDA_OK(cudaMalloc(&out, 128));
  CUDA_OK(cudaMallocAsync(&pooled, 128, nullptr));
  for (int* p : {out, pooled}) expect_quiet([&] { write_at<<<1, 32>>>(p, 0); });
  CUDA_OK(cudaFree(out));
  CUDA_OK(cudaFreeAsync(pooled, nullptr));
  expect_fault(FaultKind::kUseAfterFree, {"write_at", "write_at"},
               {"global memory at 0x", "byte 0 of cudaMalloc", "which has been freed"},
               [&] { write_at<<<1, 32>>>(out, 0); });
  expect_fault(FaultKind::kUseAfterFree, {"write_at", "write_at"},
               {"global memory at 0x", "byte 0 of cudaMallocAsync", "which has been freed"},
               [&] { write_at<<<1, 32>>>(pooled, 0); });
}

__global__ void copy_as_double(const char* in, double* out, int offset) {
  out[threadIdx.x] = *reinterpret_cast<const double*>(in + 8 * threadIdx.x + offset);  // bug: double
}
TEST(Checkers, Misaligned) {
  DeviceArray<char> in(std::vector<char>(512));
  DeviceArray<double> out(32);
  expect_fault(FaultKind::kMisaligned, {"copy_as_double", "double", "block (0, 0, 0), thread (0, 0, 0)"},
               {"8-byte access to global address 0x", "not a multiple of 8: byte 4 of cudaMalloc"},
               [&] { copy_as_double<<<1, 32>>>(in, out, 4); });
  expect_quiet([&] { copy_as_double<<<1, 32>>>(in, out, 8); });
}

__global__ void read_pairs(int2* out, int offset) {
  __shared__ int2 cells[33];
  cells[threadIdx.x] = cells[threadIdx.x + 1] = int2{1, 2};
  __syncthreads();
  const auto* from = reinterpret_cast<const int*>(cells + threadIdx.x) + offset;
  out[threadIdx.x] = *reinterpret_cast<const int2*>(from);  // bug: pair
}
TEST(Checkers, MisalignedShared) {
  simgpu::settings().check_shared_races = false;
  DeviceArray<int2> out(32);
  expect_fault(
      FaultKind::kMisaligned, {"read_pairs", "pair"},
      {"8-byte access to shared address 0x4", "not a multiple of 8: shared memory at offset 4", "cells"},
      [&] { read_pairs<<<1, 32>>>(out, 1); });
  expect_quiet([&] { read_pairs<<<1, 32>>>(out, 0); });
  simgpu::settings().check_shared_races = true;
}

__global__ void add_one(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x] + 1;  // bug: add_one
}
TEST(Checkers, UninitialisedGlobal) {
  DeviceArray<int> in(32), out(32);
  expect_fault(FaultKind::kUninitialisedRead, {"add_one", "add_one"},
               {"reads 4 bytes of global memory at 0x", "nothing has written: byte 0 of cudaMalloc"},
               [&] { add_one<<<1, 32>>>(in, out); });
  CUDA_OK(cudaMemset(in, 0, 128));
  expect_quiet([&] { add_one<<<1, 32>>>(in, out); });
}

__global__ void read_shared(int* out, bool write_all) {
  __shared__ int cells[64];
  if (write_all || threadIdx.x < 63) cells[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = cells[63 - threadIdx.x];  // bug: last cell
}
TEST(Checkers, UninitialisedShared) {
  DeviceArray<int> out(64);
  expect_fault(
      FaultKind::kUninitialisedRead, {"read_shared", "last cell", "block (0, 0, 0), thread (0, 0, 0)"},
      {"shared memory at offset 252 (byte 252 of ", "cells"}, [&] { read_shared<<<1, 64>>>(out, false); });
  expect_quiet([&] { read_shared<<<1, 64>>>(out, true); });
}

__global__ void index_shared(int* out, int index) {
  __shared__ int cells[32];
  cells[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = cells[index];  // bug: index_shared
}
TEST(Checkers, SharedOutOfBounds) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kOutOfBounds, {"index_shared", "index_shared"},
               {"reads 4 bytes of shared memory at offset 128; the block has 128"},
               [&] { index_shared<<<1, 32>>>(out, 32); });
  expect_quiet([&] { index_shared<<<1, 32>>>(out, 31); });
}

__global__ void index_local(int* out, int index) {
  int cells[32];
  for (int i = 0; i < 32; ++i) cells[i] = i * index;
  out[threadIdx.x] = cells[index + threadIdx.x];  // bug: index_local
}
TEST(Checkers, LocalOutOfBounds) {
  DeviceArray<int> out(4);
  expect_fault(FaultKind::kOutOfBounds, {"index_local", "index_local", "block (0, 0, 0), thread (2, 0, 0)"},
               {"reads 4 bytes of local memory at offset 128; the thread has 128"},
               [&] { index_local<<<1, 4>>>(out, 30); });
  expect_quiet([&] { index_local<<<1, 4>>>(out, 28); });
}

struct Four {
  int values[4];
};
__global__ void index_parameter(int* out, int index, const __grid_constant__ Four four) {
  out[threadIdx.x] = four.values[index + threadIdx.x];  // bug: index_parameter
}
TEST(Checkers, ParametersOutOfBounds) {
  DeviceArray<int> out(4);
  expect_fault(FaultKind::kOutOfBounds,
               {"index_parameter", "index_parameter", "block (0, 0, 0), thread (3, 0, 0)"},
               {"reads kernel parameters at offset 28 of 28 bytes"}, [&] {
                 index_parameter<<<1, 4>>>(out, 1, Four{{1, 2, 3, 4}});
               });
  expect_quiet([&] { index_parameter<<<1, 4>>>(out, 0, Four{{1, 2, 3, 4}}); });
}

__global__ void partial_barrier(int* out, int threads) {
  if (threadIdx.x < threads) __syncthreads();  // bug: partial_barrier
  out[threadIdx.x] = 1;
}
TEST(Checkers, BarrierNotReachedByAll) {
  DeviceArray<int> out(64);
  expect_fault(FaultKind::kBarrierDivergence, {"partial_barrier", "partial_barrier"},
               {"40 of 64 threads wait", "24 have exited"}, [&] { partial_barrier<<<1, 64>>>(out, 40); });
  expect_quiet([&] { partial_barrier<<<1, 64>>>(out, 64); });
}

__global__ void two_barriers(int* out, int border) {
  if (threadIdx.x < border) {
    asm volatile("barrier.sync 1;");
    out[threadIdx.x] = 1;
  } else {
    asm volatile("barrier.sync 2;");  // bug: two_barriers
    out[threadIdx.x] = 2;
  }
}
TEST(Checkers, DifferentBarriers) {
  DeviceArray<int> out(64);
  expect_fault(FaultKind::kBarrierDivergence, {"two_barriers", "two_barriers"}, {"32 of 64 threads wait"},
               [&] { two_barriers<<<1, 64>>>(out, 32); });
  expect_quiet([&] { two_barriers<<<1, 64>>>(out, 0); });
}

__global__ void converge(int* out, unsigned members, int lanes) {
  if (threadIdx.x < lanes) __syncwarp(members);  // bug: converge
  __syncthreads();
  out[threadIdx.x] = 1;
}
TEST(Checkers, MemberMasks) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kBarrierDivergence, {"converge", "converge"},
               {"waits for lanes of its member mask that never come"},
               [&] { converge<<<1, 32>>>(out, 0xffffffff, 16); });
  expect_fault(FaultKind::kInactiveLane, {"converge", "converge", "block (0, 0, 0), thread (8, 0, 0)"},
               {"the member mask does not name the lane that executes it"},
               [&] { converge<<<1, 32>>>(out, 0xff, 16); });
  expect_quiet([&] { converge<<<1, 32>>>(out, 0xffff, 16); });
}

template <bool kWait>
__global__ void copy_async(const int4* in, int4* out) {
  __shared__ int4 cells[32];
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(&cells[threadIdx.x]));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(in + threadIdx.x) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (kWait) asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  out[threadIdx.x] = cells[31 - threadIdx.x];  // bug: copy_async
}
TEST(Checkers, MissingAsyncWait) {
  std::vector<int4> values(32);
  for (int i = 0; i < 32; ++i) values[i] = {i, i + 1, i + 2, i + 3};
  DeviceArray<int4> in(values), out(32);
  expect_fault(FaultKind::kMissingAsyncWait, {"copy_async<false>", "copy_async"},
               {"reads shared memory at offset", "cells", "has not been waited for"},
               [&] { copy_async<false><<<1, 32>>>(in, out); });
  expect_quiet([&] { copy_async<true><<<1, 32>>>(in, out); });
  EXPECT_EQ(out.host()[0].x, 31);
}

// Each of them for the lanes below `lanes`, with a mask of members.
enum class Collective { kShuffle, kVote, kMatch, kReduce };
template <Collective kOp>
__global__ void collect(int* out, unsigned members, int lanes, int lane) {
  const int i = threadIdx.x;
  if (i >= lanes) return;
  if (kOp == Collective::kShuffle) out[i] = __shfl_sync(members, i, lane);   // bug: shuffle
  if (kOp == Collective::kVote) out[i] = __ballot_sync(members, i > 3);      // bug: vote
  if (kOp == Collective::kMatch) out[i] = __match_any_sync(members, i / 2);  // bug: match
  if (kOp == Collective::kReduce) out[i] = __reduce_add_sync(members, i);    // bug: reduce
}
TEST(Checkers, InactiveLanes) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kInactiveLane, {"collect<", "shuffle"}, {"reads lane 20"},
               [&] { collect<Collective::kShuffle><<<1, 32>>>(out, 0xffff, 16, 20); });
  expect_quiet([&] { collect<Collective::kShuffle><<<1, 32>>>(out, 0xffff, 16, 5); });
  const std::string never = "waits for lanes of its member mask that never come";
  expect_fault(FaultKind::kBarrierDivergence, {"collect<", "vote"}, {never},
               [&] { collect<Collective::kVote><<<1, 32>>>(out, 0xffffffff, 16, 0); });
  expect_quiet([&] { collect<Collective::kVote><<<1, 32>>>(out, 0xffff, 16, 0); });
  expect_fault(FaultKind::kBarrierDivergence, {"collect<", "match"}, {never},
               [&] { collect<Collective::kMatch><<<1, 32>>>(out, 0xffffffff, 16, 0); });
  expect_quiet([&] { collect<Collective::kMatch><<<1, 32>>>(out, 0xffff, 16, 0); });
  expect_fault(FaultKind::kBarrierDivergence, {"collect<", "reduce"}, {never},
               [&] { collect<Collective::kReduce><<<1, 32>>>(out, 0xffffffff, 16, 0); });
  expect_quiet([&] { collect<Collective::kReduce><<<1, 32>>>(out, 0xffff, 16, 0); });
}

#define MMA \
  "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %0, %0, %0}, {%1, %1}, {%1}, {%0, %0, %0, %0};"
__global__ void multiply(float* out, int lanes) {
  float d = 1;
  if (threadIdx.x < lanes) asm volatile(MMA : "+f"(d) : "r"(0));  // bug: multiply
  out[threadIdx.x] = d;
}
#define LDMATRIX "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
__global__ void load_matrix(unsigned* out, int lanes) {
  __shared__ alignas(16) unsigned rows[32];
  rows[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const auto row = static_cast<unsigned>(__cvta_generic_to_shared(rows + threadIdx.x % 8 * 4));
  unsigned r = 0;
  if (threadIdx.x < lanes) asm volatile(LDMATRIX : "=r"(r) : "r"(row));  // bug: load_matrix
  out[threadIdx.x] = r;
}
TEST(Checkers, MatrixInstructionsNeedAllLanes) {
  DeviceArray<float> d(32);
  expect_fault(FaultKind::kInactiveLane, {"multiply", "multiply"}, {"mma needs all 32 lanes; active: 31"},
               [&] { multiply<<<1, 32>>>(d, 31); });
  expect_quiet([&] { multiply<<<1, 32>>>(d, 32); });
  DeviceArray<unsigned> r(32);
  expect_fault(FaultKind::kInactiveLane, {"load_matrix", "load_matrix"},
               {"ldmatrix needs all 32 lanes; active: 8"}, [&] { load_matrix<<<1, 32>>>(r, 8); });
  expect_quiet([&] { load_matrix<<<1, 32>>>(r, 32); });
}

__global__ void check_value(int x) {
  assert(x < 10);  // bug: check_value
}
TEST(Checkers, DeviceAssertion) {
  expect_fault(FaultKind::kAssert, {"check_value", "check_value"}, {"x < 10"},
               [] { check_value<<<1, 1>>>(10); });
  expect_quiet([] { check_value<<<1, 1>>>(9); });
}
__global__ void give_up(bool now) {
  if (now) __trap();  // bug: give_up
}
TEST(Checkers, Trap) {
  expect_fault(FaultKind::kTrap, {"give_up", "give_up"}, {}, [] { give_up<<<1, 1>>>(true); });
  expect_quiet([] { give_up<<<1, 1>>>(false); });
}

__global__ void wait_for(volatile int* flag) {
  while (*flag == 0) {  // bug: wait_for
  }
}
__global__ void count_until(volatile int* flag, int* rounds) {
  int n = 0;
  while (*flag == 0) ++n;  // bug: count_until
  *rounds = n;
}
TEST(Checkers, Deadlock) {
  DeviceArray<int> flag(std::vector<int>{0}), set(std::vector<int>{1});
  expect_fault(FaultKind::kDeadlock, {"wait_for", "wait_for"}, {"no block makes progress"},
               [&] { wait_for<<<1, 32>>>(flag); });
  expect_quiet([&] { wait_for<<<1, 32>>>(set); });
  DeviceArray<int> rounds(1);
  simgpu::settings().loop_seconds = 0.1;
  expect_fault(FaultKind::kDeadlock, {"count_until", "count_until"}, {"no block makes progress"},
               [&] { count_until<<<1, 1>>>(flag, rounds); });
  expect_quiet([&] { count_until<<<1, 1>>>(set, rounds); });
  simgpu::settings().loop_seconds = 30;
}

// Longer than a deadlock would have to last.
__global__ void compute_long(unsigned* out, int rounds) {
  unsigned x = threadIdx.x;
#pragma unroll 1
  for (int i = 0; i < rounds; ++i) x = x * 1664525u + 1013904223u;
  out[threadIdx.x] = x;
}
TEST(Checkers, ALongLoopIsNoDeadlock) {
  simgpu::settings().threads = 1;
  DeviceArray<unsigned> out(32);
  expect_quiet([&] { compute_long<<<1, 32>>>(out, 40'000'000); });
  simgpu::settings().threads = 0;
}

TEST(Checkers, Leaks) {
  int* forgotten;
  CUDA_OK(cudaMalloc(&forgotten, 400));
  const std::vector<std::string> with = simgpu::leaks();
  ASSERT_FALSE(with.empty());
  EXPECT_NE(with.back().find("400 bytes"), std::string::npos) << with.back();
  CUDA_OK(cudaFree(forgotten));
  EXPECT_EQ(simgpu::leaks().size(), with.size() - 1);
}

TEST(Checkers, AFaultSticksUntilItIsCleared) {
  DeviceArray<int> out(32);
  write_at<<<1, 32>>>(out, 1);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 4), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  simgpu::clear_fault();
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
