// For each checker a planted bug that must be found, with the place named, and a correct twin that must be
// quiet.
#undef NDEBUG  // assert stays in an optimised build
#include <cassert>
#include <functional>

#include "support.h"

namespace {

using simgpu::FaultKind;

// Launches and waits; what the checkers said, if anything. The context works again afterwards.
std::optional<simgpu::FaultRecord> run(const std::function<void()>& launch) {
  launch();
  const cudaError_t error = cudaDeviceSynchronize();
  const std::optional<simgpu::FaultRecord> fault = simgpu::last_fault();
  EXPECT_EQ(error != cudaSuccess, fault.has_value()) << cudaGetErrorString(error);
  simgpu::clear_fault();
  return fault;
}
void expect_quiet(const std::function<void()>& launch) {
  const auto fault = run(launch);
  EXPECT_FALSE(fault) << fault->text;
}
// Every piece must stand in the report; the line of the planted bug is marked there with its number.
void expect_fault(FaultKind kind, const std::vector<std::string>& pieces,
                  const std::function<void()>& launch) {
  const auto fault = run(launch);
  ASSERT_TRUE(fault) << "nothing was reported";
  EXPECT_EQ(fault->kind, kind) << fault->text;
  for (const std::string& piece : pieces)
    EXPECT_NE(fault->text.find(piece), std::string::npos) << piece << " is not in: " << fault->text;
}
std::string at_line(int line) { return "checkers_test.cu:" + std::to_string(line); }

// Every block reads a flag that the last one to come also writes.
__global__ void read_all_write_one(int* flag, int* out, bool apart) {
  out[blockIdx.x] = flag[0];
  if (blockIdx.x == gridDim.x - 1) flag[apart ? 1 : 0] = 2;
}
TEST(Checkers, GlobalRaceOfManyReadersAndAWriter) {
  simgpu::settings().threads = 1;  // the writer is then the last reader too
  DeviceArray<int> flag(std::vector<int>{1, 1}), out(8);
  expect_fault(FaultKind::kGlobalRace, {"a write by block 7", "a read by several blocks"},
               [&] { read_all_write_one<<<8, 1>>>(flag, out, false); });
  expect_quiet([&] { read_all_write_one<<<8, 1>>>(flag, out, true); });
  simgpu::settings().threads = 0;
}

// Every thread reads the flag; one writes it again before the others can be known to have read.
template <bool kBarrier>
__global__ void broadcast_then_write(int* out) {
  __shared__ int flag;
  if (threadIdx.x == 0) flag = 1;
  __syncthreads();
  const int seen = flag;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) flag = 2;
  out[threadIdx.x] = seen;
}
TEST(Checkers, SharedRaceOfManyReadersAndAWriter) {
  DeviceArray<int> out(64);
  expect_fault(FaultKind::kSharedRace, {"a write by thread 0", "a read by", "broadcast_then_write"},
               [&] { broadcast_then_write<false><<<1, 64>>>(out); });
  expect_quiet([&] { broadcast_then_write<true><<<1, 64>>>(out); });
}

// The rest of 16 bytes is filled with zeros and not read: it may lie outside the allocation.
__global__ void copy_part(const char* in, int4* out, int bytes) {
  __shared__ int4 tile[32];
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(&tile[threadIdx.x]));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(in + 16 * threadIdx.x),
               "r"(threadIdx.x == 31 ? bytes : 16));
  asm volatile("cp.async.wait_all;" ::: "memory");
  out[threadIdx.x] = tile[threadIdx.x];
}
TEST(Checkers, PartialAsyncCopy) {
  DeviceArray<char> in(std::vector<char>(31 * 16 + 12, 1));
  DeviceArray<int4> out(32);
  expect_quiet([&] { copy_part<<<1, 32>>>(in, out, 12); });
  EXPECT_EQ(0x01010101, out.host()[31].z);
  EXPECT_EQ(0, out.host()[31].w);
  expect_fault(FaultKind::kOutOfBounds, {"0 bytes past the end"}, [&] { copy_part<<<1, 32>>>(in, out, 13); });
}

constexpr int kWriteLine = __LINE__ + 1;
__global__ void write_at(int* out, int offset) { out[threadIdx.x + offset] = 1; }
TEST(Checkers, GlobalOutOfBounds) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kOutOfBounds,
               {at_line(kWriteLine), "write_at", "0 bytes past the end of cudaMalloc", "128 bytes",
                "block (0, 0, 0), thread (31, 0, 0)"},
               [&] { write_at<<<1, 32>>>(out, 1); });
  expect_quiet([&] { write_at<<<1, 32>>>(out, 0); });
}
TEST(Checkers, NullPointer) {
  expect_fault(FaultKind::kOutOfBounds, {at_line(kWriteLine), "not device memory"},
               [&] { write_at<<<1, 1>>>(nullptr, 0); });
}
TEST(Checkers, UseAfterFree) {
  int* out;
  CUDA_OK(cudaMalloc(&out, 128));
  expect_quiet([&] { write_at<<<1, 32>>>(out, 0); });
  CUDA_OK(cudaFree(out));
  expect_fault(FaultKind::kUseAfterFree, {at_line(kWriteLine), "which has been freed"},
               [&] { write_at<<<1, 32>>>(out, 0); });
}

__global__ void copy_as_double(const char* in, double* out, int offset) {
  out[threadIdx.x] = *reinterpret_cast<const double*>(in + 8 * threadIdx.x + offset);
}
TEST(Checkers, Misaligned) {
  DeviceArray<char> in(std::vector<char>(512));
  DeviceArray<double> out(32);
  expect_fault(FaultKind::kMisaligned,
               {"8-byte access", "not a multiple of 8: byte 4 of cudaMalloc", "copy_as_double"},
               [&] { copy_as_double<<<1, 32>>>(in, out, 4); });
  expect_quiet([&] { copy_as_double<<<1, 32>>>(in, out, 8); });
}

__global__ void add_one(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x] + 1; }
TEST(Checkers, UninitialisedGlobal) {
  DeviceArray<int> in(32), out(32);
  expect_fault(FaultKind::kUninitialisedRead, {"add_one", "nothing has written"},
               [&] { add_one<<<1, 32>>>(in, out); });
  CUDA_OK(cudaMemset(in, 0, 128));
  expect_quiet([&] { add_one<<<1, 32>>>(in, out); });
}

__global__ void read_shared(int* out, bool write_all) {
  __shared__ int cells[64];
  if (write_all || threadIdx.x < 63) cells[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = cells[63 - threadIdx.x];
}
TEST(Checkers, UninitialisedShared) {
  DeviceArray<int> out(64);
  expect_fault(FaultKind::kUninitialisedRead, {"read_shared", "shared memory at offset 252"},
               [&] { read_shared<<<1, 64>>>(out, false); });
  expect_quiet([&] { read_shared<<<1, 64>>>(out, true); });
}

__global__ void index_shared(int* out, int index) {
  __shared__ int cells[32];
  cells[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = cells[index];
}
TEST(Checkers, SharedOutOfBounds) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kOutOfBounds, {"index_shared", "offset 128", "the block has 128"},
               [&] { index_shared<<<1, 32>>>(out, 32); });
  expect_quiet([&] { index_shared<<<1, 32>>>(out, 31); });
}

__global__ void index_local(int* out, int index) {
  int cells[32];
  for (int i = 0; i < 32; ++i) cells[i] = i * index;
  out[threadIdx.x] = cells[index + threadIdx.x];
}
TEST(Checkers, LocalOutOfBounds) {
  DeviceArray<int> out(4);
  expect_fault(FaultKind::kOutOfBounds,
               {"index_local", "local memory at offset 128; the thread has 128", "thread (2"},
               [&] { index_local<<<1, 4>>>(out, 30); });
  expect_quiet([&] { index_local<<<1, 4>>>(out, 28); });
}

template <bool kBarrier>
__global__ void reverse(int* out) {
  __shared__ int cells[128];
  cells[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = cells[127 - threadIdx.x];
}
TEST(Checkers, SharedRaceBetweenWarps) {
  // Without a barrier the first warp may also read what nothing has written yet: that check would come first.
  simgpu::settings().check_initialised = false;
  DeviceArray<int> out(128);
  expect_fault(FaultKind::kSharedRace, {"reverse", "no barrier between them"},
               [&] { reverse<false><<<1, 128>>>(out); });
  expect_quiet([&] { reverse<true><<<1, 128>>>(out); });
  simgpu::settings().check_initialised = true;
}
template <bool kSync>
__global__ void neighbour(int* out) {
  __shared__ volatile int unused;
  __shared__ int cells[32];
  cells[threadIdx.x] = threadIdx.x;
  if (kSync) __syncwarp();
  out[threadIdx.x] = cells[threadIdx.x ^ 1];
}
TEST(Checkers, SharedRaceInsideAWarp) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kSharedRace, {"neighbour"}, [&] { neighbour<false><<<1, 32>>>(out); });
  expect_quiet([&] { neighbour<true><<<1, 32>>>(out); });
}

// More convergence points than the detector counts: it starts again while a warp is still in an interval of
// before, which began late.
__global__ void converge_often(int* out, int* done) {
  __shared__ int values[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) {
    values[lane] = lane;
    for (int i = 0; i < (1 << 20) - 1000; ++i) __syncwarp();
  }
  __syncthreads();
  if (warp == 0) {
    for (int i = 0; i < 1000; ++i) __syncwarp();
    if (lane == 0) atomicExch(done, 1);
  } else {
    while (atomicAdd(done, 0) == 0) {
    }
    out[lane] = values[31 - lane];
  }
  __syncthreads();
  if (warp == 0) values[lane] = 0;
}
TEST(Checkers, NoRaceAfterAMillionConvergencePoints) {
  DeviceArray<int> out(32), done(std::vector<int>{0});
  expect_quiet([&] { converge_often<<<1, 64>>>(out, done); });
}

__global__ void same_place(int* out, bool shared_place) {
  out[shared_place ? threadIdx.x : blockIdx.x * 32 + threadIdx.x] = blockIdx.x;
}
__global__ void count_place(int* out) { atomicAdd(out, 1); }
__global__ void count_and_write(int* count, int* out,
                                bool same) {  // an atomic operation alone orders nothing
  atomicAdd(count, 1);
  out[same ? threadIdx.x : blockIdx.x * 32 + threadIdx.x] = blockIdx.x;
}
// A host thread's blocks pass more convergence points, of one warp, than the detector counts; each ends in an
// exchange.
__global__ void exchange_after_convergence_points(int* out) {
  __shared__ int values[64];
  if (threadIdx.x < 32) {
    for (int i = 0; i < 16; ++i) __syncwarp();
  }
  values[threadIdx.x] = 1;
  __syncthreads();
  if (values[threadIdx.x ^ 32] != 1) *out = 1;
}
TEST(Checkers, SharedRacesAfterAMillionConvergencePoints) {
  simgpu::settings().threads = 1;
  DeviceArray<int> out(1);
  expect_quiet([&] { exchange_after_convergence_points<<<80'000, 64>>>(out); });
  simgpu::settings().threads = 0;
}

TEST(Checkers, GlobalRaceBetweenBlocks) {
  DeviceArray<int> out(std::vector<int>(128));
  expect_fault(FaultKind::kGlobalRace,
               {"same_place", "on global memory at 0x", "of the same launch", "cudaMalloc"},
               [&] { same_place<<<4, 32>>>(out, true); });
  expect_quiet([&] { same_place<<<4, 32>>>(out, false); });
  expect_quiet([&] { same_place<<<4, 32>>>(out, false); });  // another launch is ordered
  expect_quiet([&] { count_place<<<4, 32>>>(out); });
  DeviceArray<int> count(std::vector<int>{0});
  expect_fault(FaultKind::kGlobalRace, {"count_and_write"},
               [&] { count_and_write<<<4, 32>>>(count, out, true); });
  expect_quiet([&] { count_and_write<<<4, 32>>>(count, out, false); });
}

__global__ void partial_barrier(int* out, int threads) {
  if (threadIdx.x < threads) __syncthreads();
  out[threadIdx.x] = 1;
}
// Block b touches `count[b]` ints from first[b] on: the detector keeps whole sectors of 32 bytes in one
// piece.
struct Pieces {
  int first[3], count[3];
  bool write[3];
};
__global__ void touch_pieces(int* data, int* out, Pieces p) {
  const int b = blockIdx.x, t = threadIdx.x;
  if (t >= p.count[b]) return;
  if (p.write[b])
    data[p.first[b] + t] = t;
  else
    out[b * 32 + t] = data[p.first[b] + t];
}
TEST(Checkers, GlobalRacesOfPartsOfSectors) {
  simgpu::settings().threads = 1;
  DeviceArray<int> data(std::vector<int>(64)), out(96);
  const auto launch = [&](const Pieces& p) { return [&, p] { touch_pieces<<<3, 32>>>(data, out, p); }; };
  const bool w = true, r = false;
  // Neighbours: parts of a sector, and sectors with an edge inside one.
  expect_quiet(launch({{0, 4, 8}, {4, 4, 24}, {w, w, w}}));
  expect_quiet(launch({{0, 20, 40}, {20, 20, 24}, {w, w, w}}));
  expect_quiet(launch({{0, 0, 0}, {32, 5, 1}, {r, r, r}}));
  expect_quiet(launch({{0, 3, 0}, {3, 29, 3}, {r, w, r}}));
  // A whole sector and then a part of it, and the other way round.
  expect_fault(FaultKind::kGlobalRace, {"a write by block 1 and a write by block 0", "byte 92 of"},
               launch({{0, 23, 40}, {32, 1, 1}, {w, w, w}}));
  expect_fault(FaultKind::kGlobalRace,
               {"a write by block 2 and a write by block 1", "byte 92 of", "thread (23"},
               launch({{40, 23, 0}, {1, 1, 32}, {w, w, w}}));
  expect_fault(FaultKind::kGlobalRace, {"a read by block 2 and a write by block 0", "thread (3, 0, 0)"},
               launch({{3, 9, 0}, {1, 1, 32}, {w, w, r}}));
  expect_fault(FaultKind::kGlobalRace, {"a write by block 2 and a read by several blocks"},
               launch({{0, 0, 31}, {32, 32, 1}, {r, r, w}}));
  simgpu::settings().threads = 0;
}

TEST(Checkers, BarrierNotReachedByAll) {
  DeviceArray<int> out(64);
  expect_fault(FaultKind::kBarrierDivergence, {"partial_barrier", "40 of 64 threads wait", "24 have exited"},
               [&] { partial_barrier<<<1, 64>>>(out, 40); });
  expect_quiet([&] { partial_barrier<<<1, 64>>>(out, 64); });
}

template <bool kWait>
__global__ void copy_async(const int4* in, int4* out) {
  __shared__ int4 cells[32];
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(&cells[threadIdx.x]));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(in + threadIdx.x) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (kWait) asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  out[threadIdx.x] = cells[31 - threadIdx.x];
}
TEST(Checkers, MissingAsyncWait) {
  std::vector<int4> values(32);
  for (int i = 0; i < 32; ++i) values[i] = {i, i + 1, i + 2, i + 3};
  DeviceArray<int4> in(values), out(32);
  expect_fault(FaultKind::kMissingAsyncWait, {"copy_async", "has not been waited for"},
               [&] { copy_async<false><<<1, 32>>>(in, out); });
  expect_quiet([&] { copy_async<true><<<1, 32>>>(in, out); });
  EXPECT_EQ(out.host()[0].x, 31);
}

__global__ void shuffle_from(int* out, int lane, unsigned members) {
  if ((members >> threadIdx.x & 1) != 0)
    out[threadIdx.x] = __shfl_sync(members, static_cast<int>(threadIdx.x), lane);
}
TEST(Checkers, ShuffleFromAnInactiveLane) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kInactiveLane, {"shuffle_from", "reads lane 20"},
               [&] { shuffle_from<<<1, 32>>>(out, 20, 0xffff); });
  expect_quiet([&] { shuffle_from<<<1, 32>>>(out, 5, 0xffff); });
}

__global__ void check_value(int x) { assert(x < 10); }
TEST(Checkers, DeviceAssertion) {
  expect_fault(FaultKind::kAssert, {"x < 10", "checkers_test.cu"}, [] { check_value<<<1, 1>>>(10); });
  expect_quiet([] { check_value<<<1, 1>>>(9); });
}
__global__ void give_up(bool now) {
  if (now) __trap();
}
TEST(Checkers, Trap) {
  expect_fault(FaultKind::kTrap, {"give_up"}, [] { give_up<<<1, 1>>>(true); });
  expect_quiet([] { give_up<<<1, 1>>>(false); });
}

__global__ void wait_for(volatile int* flag) {
  while (*flag == 0) {
  }
}
TEST(Checkers, Deadlock) {
  DeviceArray<int> flag(std::vector<int>{0}), set(std::vector<int>{1});
  expect_fault(FaultKind::kDeadlock, {"wait_for", "no block makes progress"},
               [&] { wait_for<<<1, 32>>>(flag); });
  expect_quiet([&] { wait_for<<<1, 32>>>(set); });
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
