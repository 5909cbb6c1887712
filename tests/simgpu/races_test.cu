// The race detectors: planted races that must be found, with the place named, and correct twins that must be
// quiet.
#include "faults.h"

namespace {

using simgpu::FaultKind;

// Every block reads a flag that the last one to come also writes.
__global__ void read_all_write_one(int* flag, int* out, bool apart) {
  out[blockIdx.x] = flag[0];
  if (blockIdx.x == gridDim.x - 1) flag[apart ? 1 : 0] = 2;  // bug: last block writes
}
TEST(Races, GlobalRaceOfManyReadersAndAWriter) {
  simgpu::settings().threads = 1;  // the writer is then the last reader too
  DeviceArray<int> flag(std::vector<int>{1, 1}), out(8);
  expect_fault(
      FaultKind::kGlobalRace,
      {"read_all_write_one", "last block writes", "block (7, 0, 0), thread (0, 0, 0)"},
      {"a write by block 7", "a read by several blocks", "on global memory at 0x", "byte 0 of cudaMalloc"},
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
  if (threadIdx.x == 0) flag = 2;  // bug: written while read
  out[threadIdx.x] = seen;
}
TEST(Races, SharedRaceOfManyReadersAndAWriter) {
  DeviceArray<int> out(64);
  expect_fault(FaultKind::kSharedRace, {"broadcast_then_write<false>", "written while read"},
               {"a write by thread 0", "a read by", "on shared memory at offset 0"},
               [&] { broadcast_then_write<false><<<1, 64>>>(out); });
  expect_quiet([&] { broadcast_then_write<true><<<1, 64>>>(out); });
}

template <bool kBarrier>
__global__ void reverse(int* out) {
  __shared__ int cells[128];
  cells[threadIdx.x] = threadIdx.x;  // bug: no barrier
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = cells[127 - threadIdx.x];
}
TEST(Races, SharedRaceBetweenWarps) {
  // Without a barrier the first warp may also read what nothing has written yet: that check would come first.
  simgpu::settings().check_initialised = false;
  DeviceArray<int> out(128);
  expect_fault(
      FaultKind::kSharedRace, {"reverse<false>", "no barrier"},
      {"a write by thread", "a read by thread", "no barrier between them", "on shared memory at offset"},
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
  out[threadIdx.x] = cells[threadIdx.x ^ 1];  // bug: no convergence
}
TEST(Races, SharedRaceInsideAWarp) {
  DeviceArray<int> out(32);
  expect_fault(FaultKind::kSharedRace, {"neighbour<false>", "no convergence"}, {"on shared memory at offset"},
               [&] { neighbour<false><<<1, 32>>>(out); });
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
TEST(Races, NoRaceAfterAMillionConvergencePoints) {
  DeviceArray<int> out(32), done(std::vector<int>{0});
  expect_quiet([&] { converge_often<<<1, 64>>>(out, done); });
}

__global__ void same_place(int* out, bool shared_place) {
  out[shared_place ? threadIdx.x : blockIdx.x * 32 + threadIdx.x] = blockIdx.x;  // bug: one place
}
__global__ void count_place(int* out) { atomicAdd(out, 1); }
__global__ void count_and_write(int* count, int* out,
                                bool same) {  // an atomic operation alone orders nothing
  atomicAdd(count, 1);
  out[same ? threadIdx.x : blockIdx.x * 32 + threadIdx.x] = blockIdx.x;  // bug: after a count
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
TEST(Races, SharedRacesAfterAMillionConvergencePoints) {
  simgpu::settings().threads = 1;
  DeviceArray<int> out(1);
  expect_quiet([&] { exchange_after_convergence_points<<<80'000, 64>>>(out); });
  simgpu::settings().threads = 0;
}

TEST(Races, GlobalRaceBetweenBlocks) {
  DeviceArray<int> out(std::vector<int>(128));
  expect_fault(FaultKind::kGlobalRace, {"same_place", "one place", "block ("},
               {"on global memory at 0x", "of the same launch", "byte 0 of cudaMalloc", "512 bytes"},
               [&] { same_place<<<4, 32>>>(out, true); });
  expect_quiet([&] { same_place<<<4, 32>>>(out, false); });
  expect_quiet([&] { same_place<<<4, 32>>>(out, false); });  // another launch is ordered
  expect_quiet([&] { count_place<<<4, 32>>>(out); });
  DeviceArray<int> count(std::vector<int>{0});
  expect_fault(FaultKind::kGlobalRace, {"count_and_write", "after a count", "block ("}, {"cudaMalloc"},
               [&] { count_and_write<<<4, 32>>>(count, out, true); });
  expect_quiet([&] { count_and_write<<<4, 32>>>(count, out, false); });
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
    data[p.first[b] + t] = t;  // bug: piece is written
  else
    out[b * 32 + t] = data[p.first[b] + t];  // bug: piece is read
}
TEST(Races, GlobalRacesOfPartsOfSectors) {
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
  const auto block = [](int b) { return "block (" + std::to_string(b) + ", 0, 0), thread ("; };
  const auto by = [&](const std::string& thread, const char* bug = "piece is written") {
    return Place{"touch_pieces", bug, thread.c_str()};
  };
  expect_fault(FaultKind::kGlobalRace, by(block(1)),
               {"a write by block 1 and a write by block 0", "byte 92 of"},
               launch({{0, 23, 40}, {32, 1, 1}, {w, w, w}}));
  expect_fault(FaultKind::kGlobalRace, by(block(2) + "23, 0, 0)"),
               {"a write by block 2 and a write by block 1", "byte 92 of"},
               launch({{40, 23, 0}, {1, 1, 32}, {w, w, w}}));
  expect_fault(FaultKind::kGlobalRace, by(block(2) + "3, 0, 0)", "piece is read"),
               {"a read by block 2 and a write by block 0"}, launch({{3, 9, 0}, {1, 1, 32}, {w, w, r}}));
  expect_fault(FaultKind::kGlobalRace, by(block(2)), {"a write by block 2 and a read by several blocks"},
               launch({{0, 0, 31}, {32, 32, 1}, {r, r, w}}));
  simgpu::settings().threads = 0;
}

}  // namespace
