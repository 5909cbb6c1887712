// The runtime's entry points: streams in adversarial order, events, launches, errors, devices, counters.
#include <numeric>

#include <cooperative_groups.h>

#include "streams.h"

namespace {

__device__ int table[4] = {1, 2, 3, 4};

// Two streams: one fills, the other adds. Without the event some order shows the missing wait.
bool streams_agree(bool with_event) {
  cudaStream_t first, second;
  cudaEvent_t filled;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreate(&filled);
  DeviceArray<int> in(std::vector<int>(kSize, 1)), out(std::vector<int>(kSize, 1));
  fill<<<4, 256, 0, first>>>(in, 41, kSize);
  cudaEventRecord(filled, first);
  if (with_event) cudaStreamWaitEvent(second, filled, 0);
  add<<<4, 256, 0, second>>>(in, out, kSize);
  cudaStreamSynchronize(second);
  const bool right = out.host() == std::vector<int>(kSize, 42);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
  cudaEventDestroy(filled);
  return right;
}
TEST(Streams, MissingEventWaitShows) {
  EXPECT_LT(count_orders([] { return streams_agree(false); }), 20);
  EXPECT_GT(count_orders([] { return streams_agree(false); }), 0);  // legal orders of both kinds
  EXPECT_EQ(20, count_orders([] { return streams_agree(true); }));
}
TEST(Streams, OneStreamKeepsItsOrder) {
  EXPECT_EQ(20, count_orders([] {
              cudaStream_t stream;
              cudaStreamCreate(&stream);
              DeviceArray<int> in(std::vector<int>(kSize, 1)), out(std::vector<int>(kSize, 1));
              for (int v : {1, 2, 3}) {
                fill<<<4, 256, 0, stream>>>(in, v, kSize);
                add<<<4, 256, 0, stream>>>(in, out, kSize);
              }
              cudaStreamSynchronize(stream);
              cudaStreamDestroy(stream);
              return out.host() == std::vector<int>(kSize, 7);
            }));
}
TEST(Streams, TheLegacyStreamWaitsForBlockingStreams) {
  EXPECT_EQ(20, count_orders([] {
              cudaStream_t stream;
              cudaStreamCreate(&stream);
              DeviceArray<int> in(std::vector<int>(kSize, 1)), out(std::vector<int>(kSize, 1));
              fill<<<4, 256, 0, stream>>>(in, 41, kSize);
              add<<<4, 256>>>(in, out, kSize);
              cudaDeviceSynchronize();
              cudaStreamDestroy(stream);
              return out.host() == std::vector<int>(kSize, 42);
            }));
}
TEST(Streams, HostFunctionsAndQueries) {
  const Order order(5);
  cudaStream_t stream;
  CUDA_OK(cudaStreamCreate(&stream));
  int calls = 0;
  CUDA_OK(cudaLaunchHostFunc(
      stream, [](void* p) { ++*static_cast<int*>(p); }, &calls));
  EXPECT_EQ(0, calls);
  EXPECT_EQ(cudaErrorNotReady, cudaStreamQuery(stream));
  EXPECT_EQ(cudaSuccess, cudaStreamQuery(stream));
  EXPECT_EQ(1, calls);
  CUDA_OK(cudaStreamDestroy(stream));
}
TEST(Streams, PrioritiesAndIdentity) {
  int least, greatest, priority, device;
  CUDA_OK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  EXPECT_LT(greatest, least);
  cudaStream_t a, b;
  CUDA_OK(cudaStreamCreateWithPriority(&a, cudaStreamNonBlocking, greatest));
  CUDA_OK(cudaStreamCreate(&b));
  CUDA_OK(cudaStreamGetPriority(a, &priority));
  EXPECT_EQ(greatest, priority);
  unsigned long long id_a, id_b;
  CUDA_OK(cudaStreamGetId(a, &id_a));
  CUDA_OK(cudaStreamGetId(b, &id_b));
  EXPECT_NE(id_a, id_b);
  CUDA_OK(cudaStreamGetDevice(a, &device));
  EXPECT_EQ(0, device);
  for (cudaStream_t s : {a, b}) CUDA_OK(cudaStreamDestroy(s));
}
TEST(Events, MayBeDestroyedBeforeTheyHappen) {
  const Order order(2);
  cudaStream_t stream;
  CUDA_OK(cudaStreamCreate(&stream));
  for (int i = 0; i < 3; ++i) {
    cudaEvent_t event;
    CUDA_OK(cudaEventCreate(&event));
    CUDA_OK(cudaEventRecord(event, stream));
    CUDA_OK(cudaEventRecord(event, nullptr));
    CUDA_OK(cudaEventDestroy(event));
  }
  CUDA_OK(cudaStreamSynchronize(stream));
  CUDA_OK(cudaStreamDestroy(stream));
}
TEST(Events, Time) {
  cudaEvent_t a, b;
  CUDA_OK(cudaEventCreate(&a));
  CUDA_OK(cudaEventCreate(&b));
  float ms = -1;
  EXPECT_EQ(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, a, b));  // not recorded
  cudaGetLastError();
  CUDA_OK(cudaEventRecord(a));
  CUDA_OK(cudaEventRecord(b));
  CUDA_OK(cudaEventSynchronize(b));
  CUDA_OK(cudaEventElapsedTime(&ms, a, b));
  EXPECT_GE(ms, 0);
  CUDA_OK(cudaEventDestroy(a));
  CUDA_OK(cudaEventDestroy(b));
}

TEST(Errors, ConfigurationsThatHardwareRefuses) {
  DeviceArray<int> out(32);
  fill<<<1, 1025>>>(out, 1, 1);
  EXPECT_EQ(cudaErrorInvalidConfiguration, cudaGetLastError());
  fill<<<dim3(1, 65536), 1>>>(out, 1, 1);
  EXPECT_EQ(cudaErrorInvalidConfiguration, cudaGetLastError());
  fill<<<0, 32>>>(out, 1, 1);
  EXPECT_EQ(cudaErrorInvalidConfiguration, cudaGetLastError());
  fill<<<1, 32, 49 * 1024>>>(out, 1, 1);  // without opting in
  EXPECT_EQ(cudaErrorInvalidValue, cudaGetLastError());
  CUDA_OK(cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 163 * 1024));
  fill<<<1, 32, 163 * 1024>>>(out, 1, 1);
  EXPECT_EQ(cudaSuccess, cudaDeviceSynchronize());
  EXPECT_EQ(cudaErrorInvalidValue,
            cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 163 * 1024 + 1));
  cudaGetLastError();
}
__global__ void fault(int* p) { p[1 << 20] = 1; }
TEST(Errors, AFaultSticksUntilReset) {
  DeviceArray<int> out(32);
  fault<<<1, 1>>>(out);
  EXPECT_EQ(cudaErrorIllegalAddress, cudaDeviceSynchronize());
  EXPECT_EQ(cudaErrorIllegalAddress, cudaGetLastError());
  EXPECT_EQ(cudaErrorIllegalAddress, cudaGetLastError());
  void* p;
  EXPECT_EQ(cudaErrorIllegalAddress, cudaMalloc(&p, 4));
  simgpu::clear_fault();
  EXPECT_EQ(cudaSuccess, cudaMalloc(&p, 4));
  CUDA_OK(cudaFree(p));
}
TEST(Errors, ResetStartsAnew) {
  int* kept;
  CUDA_OK(cudaMalloc(&kept, 400));
  fault<<<1, 1>>>(kept);
  EXPECT_EQ(cudaErrorIllegalAddress, cudaDeviceSynchronize());
  CUDA_OK(cudaDeviceReset());
  EXPECT_EQ(cudaSuccess, cudaGetLastError());
  EXPECT_EQ(cudaErrorInvalidValue, cudaFree(kept));  // it is gone
  cudaGetLastError();
  DeviceArray<int> out(kSize);
  fill<<<4, 256>>>(out, 5, kSize);
  EXPECT_EQ(std::vector<int>(kSize, 5), out.host());
}
TEST(Errors, NamesAndThereIsNoDriver) {
  EXPECT_STREQ("cudaErrorIllegalAddress", cudaGetErrorName(cudaErrorIllegalAddress));
  EXPECT_STREQ("unrecognized error code", cudaGetErrorName(static_cast<cudaError_t>(54321)));
  void* function = &function;
  cudaDriverEntryPointQueryResult found;
  CUDA_OK(cudaGetDriverEntryPointByVersion("cuLaunchKernel", &function, 12000, 0, &found));
  EXPECT_EQ(cudaDriverEntryPointSymbolNotFound, found);
  EXPECT_EQ(nullptr, function);
  int driver, runtime;
  CUDA_OK(cudaDriverGetVersion(&driver));
  CUDA_OK(cudaRuntimeGetVersion(&runtime));
  EXPECT_EQ(CUDART_VERSION, runtime);
  EXPECT_GE(driver, runtime);
}
void allocate_array() {
  cudaArray_t array;
  const cudaChannelFormatDesc format{8, 0, 0, 0, cudaChannelFormatKindUnsigned};
  cudaMallocArray(&array, &format, 16, 16, 0);
}
TEST(ErrorsDeathTest, WhatIsNotSimulatedIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(allocate_array(), "cudaMallocArray is not simulated");
}

__global__ void grid_sum(const int* in, int* partial, int* out) {
  namespace cg = cooperative_groups;
  const cg::grid_group grid = cg::this_grid();
  if (threadIdx.x == 0) partial[blockIdx.x] = in[blockIdx.x];
  grid.sync();
  if (grid.thread_rank() == 0) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b];
    *out = sum;
  }
}
TEST(Launch, CooperativeAndExtended) {
  // The grid's barrier starts from zeros, also where freed memory is used again.
  for (int i = 0; i < 5000; ++i) {
    DeviceArray<int> used(16);
    CUDA_OK(cudaMemset(used, 0x55, 64));
  }
  std::vector<int> values(100);
  std::iota(values.begin(), values.end(), 1);
  DeviceArray<int> in(values), partial(100), out(1);
  const int* pi = in;
  int *pp = partial, *po = out;
  void* args[] = {&pi, &pp, &po};
  CUDA_OK(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_sum), dim3(100), dim3(32), args, 0,
                                      nullptr));
  EXPECT_EQ(5050, out.host()[0]);
  EXPECT_EQ(cudaErrorCooperativeLaunchTooLarge,
            cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_sum), dim3(4000), dim3(32), args,
                                        0, nullptr));
  cudaGetLastError();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(100);
  config.blockDim = dim3(32);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  CUDA_OK(cudaLaunchKernelEx(&config, grid_sum, pi, pp, po));
  EXPECT_EQ(5050, out.host()[0]);
}

TEST(Devices, Several) {
  simgpu::settings().devices = 3;
  int count, peer;
  CUDA_OK(cudaGetDeviceCount(&count));
  EXPECT_EQ(3, count);
  CUDA_OK(cudaDeviceCanAccessPeer(&peer, 0, 2));
  EXPECT_EQ(1, peer);
  CUDA_OK(cudaDeviceEnablePeerAccess(2, 0));
  EXPECT_EQ(cudaErrorPeerAccessAlreadyEnabled, cudaDeviceEnablePeerAccess(2, 0));
  cudaGetLastError();
  CUDA_OK(cudaDeviceDisablePeerAccess(2));
  char bus[16];
  int device;
  CUDA_OK(cudaDeviceGetPCIBusId(bus, sizeof bus, 2));
  CUDA_OK(cudaDeviceGetByPCIBusId(&device, bus));
  EXPECT_EQ(2, device);
  CUDA_OK(cudaSetDevice(2));
  {
    DeviceArray<int> there(kSize);
    fill<<<4, 256>>>(there, 9, kSize);
    const int five = 5;
    CUDA_OK(cudaMemcpyToSymbol(table, &five, 4));  // a variable has an instance on every device
    CUDA_OK(cudaSetDevice(0));
    DeviceArray<int> here(kSize);
    CUDA_OK(cudaMemcpyPeer(here, 0, there, 2, kSize * 4));
    EXPECT_EQ(std::vector<int>(kSize, 9), here.host());
    int first;
    CUDA_OK(cudaMemcpyFromSymbol(&first, table, 4));
    EXPECT_EQ(1, first);
  }
  simgpu::settings().devices = 1;
}

// Memory of another device is opened to kernels by peer access, that of pools by the pool's; everyone may
// access what is the host's too.
TEST(Devices, PeerAccess) {
  simgpu::settings().devices = 2;
  const auto refused = [](int* data, const std::string& remedy) {
    fill<<<1, 32>>>(data, 1, 32);
    EXPECT_EQ(cudaErrorIllegalAddress, cudaDeviceSynchronize());
    const auto fault = simgpu::last_fault();
    ASSERT_TRUE(fault.has_value());
    EXPECT_EQ(simgpu::FaultKind::kNoPeerAccess, fault->kind);
    for (const std::string& piece :
         {std::string("fill"), std::string("of device 1, to which device 0 has no access"), remedy})
      EXPECT_NE(std::string::npos, fault->text.find(piece)) << fault->text;
    simgpu::clear_fault();
  };
  const auto allowed = [](int* data) {
    fill<<<1, 32>>>(data, 1, 32);
    EXPECT_EQ(cudaSuccess, cudaDeviceSynchronize());
  };
  CUDA_OK(cudaSetDevice(1));
  int *there, *pooled, *managed, *pinned;
  cudaMemPool_t pool;
  CUDA_OK(cudaMalloc(&there, 128));
  CUDA_OK(cudaMallocAsync(&pooled, 128, nullptr));
  CUDA_OK(cudaMallocManaged(&managed, 128));
  CUDA_OK(cudaMallocHost(&pinned, 128));
  CUDA_OK(cudaDeviceGetDefaultMemPool(&pool, 1));
  allowed(there);
  CUDA_OK(cudaSetDevice(0));
  refused(there, "cudaDeviceEnablePeerAccess");
  CUDA_OK(cudaDeviceEnablePeerAccess(1, 0));
  allowed(there);
  refused(pooled, "cudaMemPoolSetAccess");
  cudaMemAccessDesc access{{cudaMemLocationTypeDevice, 0}, cudaMemAccessFlagsProtReadWrite};
  CUDA_OK(cudaMemPoolSetAccess(pool, &access, 1));
  CUDA_OK(cudaDeviceDisablePeerAccess(1));
  allowed(pooled);
  refused(there, "cudaDeviceEnablePeerAccess");
  cudaMemAccessFlags flags;
  CUDA_OK(cudaMemPoolGetAccess(&flags, pool, &access.location));
  EXPECT_EQ(cudaMemAccessFlagsProtReadWrite, flags);
  access.flags = cudaMemAccessFlagsProtNone;
  CUDA_OK(cudaMemPoolSetAccess(pool, &access, 1));
  refused(pooled, "cudaMemPoolSetAccess");
  allowed(managed);
  allowed(pinned);
  for (int* p : {there, pooled, managed}) CUDA_OK(cudaFree(p));
  CUDA_OK(cudaFreeHost(pinned));
  simgpu::settings().devices = 1;
}
TEST(Devices, StreamsAndEventsBelongToOne) {
  simgpu::settings().devices = 2;
  DeviceArray<int> here(32);
  cudaEvent_t event;
  CUDA_OK(cudaEventCreate(&event));
  CUDA_OK(cudaSetDevice(1));
  cudaStream_t there;
  CUDA_OK(cudaStreamCreate(&there));
  CUDA_OK(cudaSetDevice(0));
  fill<<<1, 32, 0, there>>>(here, 1, 32);
  EXPECT_EQ(cudaErrorInvalidResourceHandle, cudaGetLastError());
  EXPECT_EQ(cudaErrorInvalidResourceHandle, cudaEventRecord(event, there));
  cudaGetLastError();
  CUDA_OK(cudaEventDestroy(event));
  CUDA_OK(cudaStreamDestroy(there));
  simgpu::settings().devices = 1;
}

TEST(Streams, WhatAStreamWillFreeIsFreed) {
  const Order order(1);
  const size_t leaks = simgpu::leaks().size();
  int* p;
  CUDA_OK(cudaMallocAsync(&p, 64, nullptr));
  CUDA_OK(cudaFreeAsync(p, nullptr));
  EXPECT_EQ(leaks, simgpu::leaks().size());
  EXPECT_EQ(cudaErrorInvalidValue, cudaFreeAsync(p, nullptr));
  cudaGetLastError();
}
TEST(Counters, LaunchesBeforeAreForgottenThoughTheyHaveNotRunYet) {
  const Order order(1);
  DeviceArray<int> out(32);
  fill<<<1, 32>>>(out, 1, 32);
  simgpu::clear_launches();
  add<<<1, 32>>>(out, out, 32);
  CUDA_OK(cudaDeviceSynchronize());
  ASSERT_EQ(1u, simgpu::launches().size());
}

TEST(SettingsDeathTest, WhatCannotBeMeantIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto expect_refused = [](const char* name, const char* value, const char* text) {
    setenv(name, value, 1);
    EXPECT_EXIT(std::exit(0), testing::ExitedWithCode(1),
                std::string("simgpu: ") + name + "=" + value + ": expected " + text);
    unsetenv(name);
  };
  expect_refused("ERGON_SIMGPU_CHECK", "memory,race", "0, or memory, initialised, shared-races");
  expect_refused("ERGON_SIMGPU_DEVICES", "65", "a number from 1 to 64");
  expect_refused("ERGON_SIMGPU_MEMORY", "4T", "a number from 1 to .* also as 512M or 2G");
}

// What the process prints when it ends: after its static objects are gone.
struct Cache {
  Cache() { cudaMalloc(&memory, 64); }
  ~Cache() {
    cudaFree(memory);
    std::fprintf(stderr, "the cache is gone\n");
  }
  int* memory = nullptr;
};
void run_and_exit(bool leak) {
  simgpu::settings().profile = true;
  static const Cache cache;
  int* kept;
  cudaMalloc(&kept, 1000 * sizeof(int));
  fill<<<4, 256>>>(kept, 1, 1000);
  if (!leak) cudaFree(kept);
  std::exit(cudaDeviceSynchronize() == cudaSuccess ? 0 : 1);
}
TEST(ExitDeathTest, ProfileAndLeaks) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::string table = "the cache is gone\nlaunches +warp instr.*kernel\n.*fill.*\n";
  EXPECT_EXIT(run_and_exit(true), testing::ExitedWithCode(0),
              table + "simgpu: not freed: cudaMalloc #2, 4000 bytes\n$");
  EXPECT_EXIT(run_and_exit(false), testing::ExitedWithCode(0), table + "$");
}

TEST(Counters, OfAVectorAdd) {
  DeviceArray<int> in(std::vector<int>(1024, 1)), out(std::vector<int>(1024, 2));
  simgpu::clear_launches();
  add<<<4, 256>>>(in, out, 1024);
  CUDA_OK(cudaDeviceSynchronize());
  ASSERT_EQ(1u, simgpu::launches().size());
  const simgpu::Counters& c = simgpu::launches()[0].counters;
  EXPECT_EQ(4u, c.blocks);
  EXPECT_EQ(32u, c.warps);
  EXPECT_EQ(64u, c.global_load_requests);  // two loads a warp
  EXPECT_EQ(64u * 128, c.global_load_bytes);
  EXPECT_EQ(64u * 4, c.global_load_sectors);  // 32 bytes each, none wasted
  EXPECT_EQ(32u * 128, c.global_store_bytes);
  EXPECT_EQ(0u, c.barriers);
  EXPECT_EQ(0u, c.divergent_branches);
}
// Two loops, of which the inner one multiplies; a copy with conflicts before them.
constexpr int kConflictLine = __LINE__ + 3;
__global__ void looping(float* out, int n) {
  __shared__ volatile int column[32 * 32];
  column[threadIdx.x % 32 * 32] = n;
  unsigned a = threadIdx.x;
  float d[4] = {};
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    a = a * 3 + 1;
#pragma unroll 1
    for (int j = 0; j < 5; ++j) {
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4}, {%4}, {%0,%1,%2,%3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a));
    }
  }
  out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
TEST(Counters, OfLoopsAndLines) {
  simgpu::settings().count_lines = true;
  DeviceArray<float> out(64);
  looping<<<1, 64>>>(out, 7);
  CUDA_OK(cudaDeviceSynchronize());
  simgpu::settings().count_lines = false;
  const simgpu::LaunchRecord& launch = simgpu::launches().back();
  ASSERT_EQ(2u, launch.loops.size());
  const simgpu::Region &inner = launch.loops[0], &outer = launch.loops[1];
  EXPECT_EQ(&inner, &simgpu::main_loop(launch));
  EXPECT_EQ(2u * 7 * 5, inner.iterations);  // of two warps
  EXPECT_EQ(2u * 7, outer.iterations);
  EXPECT_EQ(2u * 7 * 5, inner.work.mma_count);
  EXPECT_EQ(2u * 7 * 5, outer.work.mma_count);
  EXPECT_EQ(0u, outer.work.bank_conflicts());
  EXPECT_NE(std::string::npos, inner.place.find("runtime_test.cu:")) << inner.place;
  // The mma, the counter, the comparison and the branch.
  EXPECT_EQ(4 * inner.work.mma_count, inner.warp_instructions.total());
  EXPECT_GT(outer.warp_instructions.total(), inner.warp_instructions.total());
  EXPECT_LT(outer.warp_instructions.total(), launch.counters.warp_instructions.total());
  uint64_t instructions = 0;
  for (const simgpu::Region& line : launch.lines) {
    instructions += line.warp_instructions.total();
    const bool here = line.place.ends_with(":" + std::to_string(kConflictLine));
    EXPECT_EQ(here ? 2u * 31 : 0u, line.work.bank_conflicts()) << line.place;
  }
  EXPECT_EQ(launch.counters.warp_instructions.total(), instructions);
}
__global__ void strided(const int* in, int* out, int stride) {
  __shared__ int tile[32 * 33];
  tile[threadIdx.x * stride] = in[threadIdx.x * 8];
  __syncthreads();
  if (threadIdx.x < 7) atomicAdd(out, tile[threadIdx.x * stride]);
}
TEST(Counters, ConflictsSectorsAtomicsDivergence) {
  DeviceArray<int> in(std::vector<int>(256, 1)), out(std::vector<int>(1));
  const auto run = [&](int stride) {
    simgpu::clear_launches();
    strided<<<1, 32>>>(in, out, stride);
    EXPECT_EQ(cudaSuccess, cudaDeviceSynchronize());
    return simgpu::launches().back().counters;
  };
  const simgpu::Counters straight = run(33), conflicts = run(32);
  EXPECT_EQ(straight.shared_ideal_wavefronts, straight.shared_wavefronts);
  EXPECT_EQ(31u + 6u,
            conflicts.shared_wavefronts - conflicts.shared_ideal_wavefronts);  // 32 and 7 lanes on one bank
  EXPECT_EQ(32u, straight.global_load_sectors);
  EXPECT_EQ(1u, straight.barriers);
  EXPECT_GE(straight.atomics, 1u);
}

}  // namespace
