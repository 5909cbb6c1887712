// Allocation, pools, copies in all kinds and shapes, pinned and managed memory, symbols.
#include <numeric>

#include "streams.h"

namespace {

TEST(Memory, EveryKindOfCopy) {
  std::vector<int> values(kSize), back(kSize);
  std::iota(values.begin(), values.end(), 0);
  int *a, *b, *pinned, *managed;
  CUDA_OK(cudaMalloc(&a, kSize * 4));
  CUDA_OK(cudaMalloc(&b, kSize * 4));
  CUDA_OK(cudaMallocHost(&pinned, kSize * 4));
  CUDA_OK(cudaMallocManaged(&managed, kSize * 4));
  CUDA_OK(cudaMemcpy(a, values.data(), kSize * 4, cudaMemcpyHostToDevice));
  CUDA_OK(cudaMemcpy(b, a, kSize * 4, cudaMemcpyDeviceToDevice));
  CUDA_OK(cudaMemcpy(pinned, b, kSize * 4, cudaMemcpyDeviceToHost));
  CUDA_OK(cudaMemcpy(managed, pinned, kSize * 4, cudaMemcpyDefault));
  CUDA_OK(cudaMemcpy(back.data(), managed, kSize * 4, cudaMemcpyDefault));
  EXPECT_EQ(values, back);
  EXPECT_EQ(cudaErrorInvalidMemcpyDirection,
            cudaMemcpy(back.data(), values.data(), 4, cudaMemcpyHostToDevice));
  EXPECT_EQ(cudaErrorInvalidValue, cudaMemcpy(a, values.data(), kSize * 4 + 4, cudaMemcpyHostToDevice));
  cudaPointerAttributes attributes;
  CUDA_OK(cudaPointerGetAttributes(&attributes, a + 3));
  EXPECT_EQ(cudaMemoryTypeDevice, attributes.type);
  CUDA_OK(cudaPointerGetAttributes(&attributes, pinned));
  EXPECT_EQ(cudaMemoryTypeHost, attributes.type);
  CUDA_OK(cudaPointerGetAttributes(&attributes, managed));
  EXPECT_EQ(cudaMemoryTypeManaged, attributes.type);
  CUDA_OK(cudaPointerGetAttributes(&attributes, back.data()));
  EXPECT_EQ(cudaMemoryTypeUnregistered, attributes.type);
  for (int* p : {a, b, managed}) CUDA_OK(cudaFree(p));
  CUDA_OK(cudaFreeHost(pinned));
  EXPECT_EQ(cudaErrorInvalidValue, cudaFree(a));  // twice
  cudaGetLastError();
}
TEST(Memory, TwoDimensions) {
  std::vector<int> values(6 * 8), back(4 * 6, -1);
  std::iota(values.begin(), values.end(), 0);
  DeviceArray<int> device(std::vector<int>(4 * 10));
  CUDA_OK(cudaMemcpy2D(device, 10 * 4, values.data(), 8 * 4, 6 * 4, 4, cudaMemcpyHostToDevice));
  CUDA_OK(cudaMemset2D(device.data() + 10, 10 * 4, 0, 2 * 4, 1));
  CUDA_OK(cudaMemcpy2D(back.data(), 6 * 4, device, 10 * 4, 6 * 4, 4, cudaMemcpyDeviceToHost));
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 6; ++c) EXPECT_EQ(r == 1 && c < 2 ? 0 : r * 8 + c, back[r * 6 + c]);
  }
}
TEST(Memory, OutOfMemory) {
  void* p = nullptr;
  EXPECT_EQ(cudaErrorMemoryAllocation, cudaMalloc(&p, size_t{41} << 30));
  EXPECT_EQ(cudaErrorMemoryAllocation, cudaGetLastError());
  EXPECT_EQ(cudaSuccess, cudaGetLastError());  // not sticky
  size_t before, after, total;
  CUDA_OK(cudaMemGetInfo(&before, &total));
  CUDA_OK(cudaMalloc(&p, 1 << 20));
  CUDA_OK(cudaMemGetInfo(&after, &total));
  EXPECT_EQ(before - (1 << 20), after);
  CUDA_OK(cudaFree(p));
}
TEST(Memory, Pools) {
  cudaStream_t stream;
  CUDA_OK(cudaStreamCreate(&stream));
  cudaMemPool_t pool;
  CUDA_OK(cudaDeviceGetDefaultMemPool(&pool, 0));
  uint64_t threshold = UINT64_MAX, used = 0, high = 0;
  CUDA_OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  CUDA_OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &used));
  int *a, *b;
  CUDA_OK(cudaMallocAsync(&a, 4096, stream));
  CUDA_OK(cudaMallocFromPoolAsync(&b, 8192, pool, stream));
  fill<<<4, 256, 0, stream>>>(a, 3, kSize);
  CUDA_OK(cudaFreeAsync(b, stream));
  CUDA_OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &high));
  EXPECT_EQ(4096u + 8192u, high);
  std::vector<int> back(kSize);
  CUDA_OK(cudaMemcpyAsync(back.data(), a, kSize * 4, cudaMemcpyDeviceToHost, stream));
  CUDA_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(std::vector<int>(kSize, 3), back);
  CUDA_OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used));
  EXPECT_EQ(4096u, used);
  CUDA_OK(cudaFreeAsync(a, stream));
  CUDA_OK(cudaStreamDestroy(stream));
}

__device__ int table[4] = {1, 2, 3, 4};
__constant__ float scale;
__global__ void use_symbols(float* out) {
  out[threadIdx.x] = scale * static_cast<float>(table[threadIdx.x]++);
}
TEST(Memory, Symbols) {
  const float two = 2;
  CUDA_OK(cudaMemcpyToSymbol(scale, &two, sizeof two));
  DeviceArray<float> out(4);
  use_symbols<<<1, 4>>>(out);
  EXPECT_EQ((std::vector<float>{2, 4, 6, 8}), out.host());
  const auto& counters = simgpu::launches().back().counters;
  EXPECT_EQ(16u, counters.global_load_bytes);  // of the table: constants do not count
  int values[4];
  CUDA_OK(cudaMemcpyFromSymbol(values, table, sizeof values));
  EXPECT_EQ(5, values[3]);
  const int zeros[4] = {1, 2, 3, 4};
  CUDA_OK(cudaMemcpyToSymbol(table, zeros, sizeof zeros));
  void* address;
  size_t bytes;
  CUDA_OK(cudaGetSymbolAddress(&address, table));
  CUDA_OK(cudaGetSymbolSize(&bytes, table));
  EXPECT_EQ(16u, bytes);
  EXPECT_EQ(cudaErrorInvalidValue, cudaMemcpyToSymbol(table, values, sizeof values, 4));
  cudaGetLastError();
}

TEST(Memory, RegisteredAndMapped) {
  std::vector<int> values(kSize), back(kSize);
  std::iota(values.begin(), values.end(), 0);
  void* seen = nullptr;
  EXPECT_EQ(cudaErrorInvalidValue, cudaHostGetDevicePointer(&seen, values.data(), 0));
  CUDA_OK(cudaHostRegister(values.data(), kSize * 4, cudaHostRegisterMapped));
  EXPECT_EQ(cudaErrorHostMemoryAlreadyRegistered, cudaHostRegister(values.data() + 1, 4, 0));
  cudaGetLastError();
  CUDA_OK(cudaHostGetDevicePointer(&seen, values.data(), 0));
  cudaPointerAttributes attributes;
  CUDA_OK(cudaPointerGetAttributes(&attributes, values.data() + 5));
  EXPECT_EQ(cudaMemoryTypeHost, attributes.type);
  int* mapped;
  CUDA_OK(cudaHostAlloc(&mapped, kSize * 4, cudaHostAllocMapped));
  CUDA_OK(cudaMemset(mapped, 0, kSize * 4));
  add<<<4, 256>>>(static_cast<const int*>(seen), mapped, kSize);  // both on the host
  CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(values, std::vector<int>(mapped, mapped + kSize));
  CUDA_OK(cudaFreeHost(mapped));
  CUDA_OK(cudaHostUnregister(values.data()));
  EXPECT_EQ(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(values.data()));
  cudaGetLastError();
}
// Pinned memory is copied when its turn comes: what the host reads before is old, what it writes before is
// new.
TEST(Memory, PinnedCopiesAreAsynchronous) {
  const Order order(3);
  DeviceArray<int> device(std::vector<int>{7});
  int* pinned;
  CUDA_OK(cudaMallocHost(&pinned, 4));
  *pinned = 1;
  CUDA_OK(cudaMemcpyAsync(pinned, device, 4, cudaMemcpyDeviceToHost, nullptr));
  EXPECT_EQ(1, *pinned);
  CUDA_OK(cudaStreamSynchronize(nullptr));
  EXPECT_EQ(7, *pinned);
  CUDA_OK(cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, nullptr));
  *pinned = 9;  // too early
  EXPECT_EQ(9, device.host()[0]);
  CUDA_OK(cudaFreeHost(pinned));
}

__managed__ int managed_counter = 3;
__global__ void count_managed() { atomicAdd(&managed_counter, 2); }
TEST(Memory, ManagedVariable) {
  EXPECT_EQ(3, managed_counter);
  count_managed<<<1, 32>>>();
  CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(67, managed_counter);
  managed_counter = 3;
}

TEST(Memory, ThreeDimensions) {
  // 5 x 4 x 3 of ints out of a device box of rows with a pitch, from x = 1, y = 1, z = 0.
  const cudaExtent box = make_cudaExtent(8 * 4, 6, 3), part = make_cudaExtent(5 * 4, 4, 3);
  cudaPitchedPtr device;
  CUDA_OK(cudaMalloc3D(&device, box));
  EXPECT_EQ(0u, device.pitch % 512);
  std::vector<int> values(8 * 6 * 3), back(5 * 4 * 3);
  std::iota(values.begin(), values.end(), 0);
  cudaMemcpy3DParms copy = {};
  copy.srcPtr = make_cudaPitchedPtr(values.data(), 8 * 4, 8, 6);
  copy.dstPtr = device;
  copy.extent = box;
  copy.kind = cudaMemcpyHostToDevice;
  CUDA_OK(cudaMemcpy3D(&copy));
  copy = {};
  copy.srcPtr = device;
  copy.srcPos = make_cudaPos(4, 1, 0);
  copy.dstPtr = make_cudaPitchedPtr(back.data(), 5 * 4, 5, 4);
  copy.extent = part;
  copy.kind = cudaMemcpyDeviceToHost;
  CUDA_OK(cudaMemcpy3D(&copy));
  for (int z = 0; z < 3; ++z) {
    for (int y = 0; y < 4; ++y) {
      for (int x = 0; x < 5; ++x) EXPECT_EQ(values[(z * 6 + y + 1) * 8 + x + 1], back[(z * 4 + y) * 5 + x]);
    }
  }
  CUDA_OK(cudaFree(device.ptr));
}

TEST(Memory, SizeOfTheDevice) {
  const auto all = simgpu::settings().memory_bytes;
  simgpu::settings().memory_bytes = 1 << 20;
  size_t free_bytes, total;
  cudaMemPool_t pool;
  CUDA_OK(cudaDeviceGetDefaultMemPool(&pool, 0));
  CUDA_OK(cudaMemPoolTrimTo(pool, 0));
  CUDA_OK(cudaMemGetInfo(&free_bytes, &total));
  EXPECT_EQ(size_t{1} << 20, total);
  void *a = nullptr, *b = nullptr;
  CUDA_OK(cudaMallocAsync(&a, free_bytes - 1000, nullptr));
  EXPECT_EQ(cudaErrorMemoryAllocation, cudaMallocAsync(&b, 2000, nullptr));
  EXPECT_EQ(cudaErrorMemoryAllocation, cudaGetLastError());
  EXPECT_EQ(nullptr, b);
  CUDA_OK(cudaFreeAsync(a, nullptr));
  CUDA_OK(cudaMallocAsync(&b, 2000, nullptr));
  CUDA_OK(cudaFreeAsync(b, nullptr));
  simgpu::settings().memory_bytes = all;
}
TEST(Memory, PoolsKeepUpToTheirThreshold) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, 0};
  cudaMemPool_t pool;
  CUDA_OK(cudaMemPoolCreate(&pool, &properties));
  const auto get = [&](cudaMemPoolAttr attribute) {
    uint64_t bytes = 0;
    EXPECT_EQ(cudaSuccess, cudaMemPoolGetAttribute(pool, attribute, &bytes));
    return bytes;
  };
  uint64_t threshold = 3000;
  CUDA_OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  void *a, *b;
  size_t before, after, total;
  CUDA_OK(cudaMemGetInfo(&before, &total));
  CUDA_OK(cudaMallocFromPoolAsync(&a, 4000, pool, nullptr));
  CUDA_OK(cudaMallocFromPoolAsync(&b, 1000, pool, nullptr));
  CUDA_OK(cudaFreeAsync(a, nullptr));
  EXPECT_EQ(1000u, get(cudaMemPoolAttrUsedMemCurrent));
  EXPECT_EQ(5000u, get(cudaMemPoolAttrReservedMemCurrent));
  CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(3000u, get(cudaMemPoolAttrReservedMemCurrent));
  CUDA_OK(cudaMemGetInfo(&after, &total));
  EXPECT_EQ(before - 3000, after);
  CUDA_OK(cudaMemPoolTrimTo(pool, 2000));
  EXPECT_EQ(2000u, get(cudaMemPoolAttrReservedMemCurrent));
  CUDA_OK(cudaMemPoolTrimTo(pool, 0));
  EXPECT_EQ(1000u, get(cudaMemPoolAttrReservedMemCurrent));
  EXPECT_EQ(5000u, get(cudaMemPoolAttrReservedMemHigh));
  CUDA_OK(cudaFreeAsync(b, nullptr));
  CUDA_OK(cudaMemPoolDestroy(pool));
}

// Memory of a stream: allocated, filled, used and freed in its order, whatever that of the streams is.
TEST(Memory, StreamOrderedUnderEveryOrder) {
  EXPECT_EQ(20, count_orders([] {
              cudaStream_t stream;
              cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
              int *in, *out;
              std::vector<int> back(kSize);
              cudaMallocAsync(&in, kSize * 4, stream);
              cudaMallocAsync(&out, kSize * 4, stream);
              cudaMemsetAsync(out, 0, kSize * 4, stream);
              fill<<<4, 256, 0, stream>>>(in, 5, kSize);
              add<<<4, 256, 0, stream>>>(in, out, kSize);
              cudaMemcpyAsync(back.data(), out, kSize * 4, cudaMemcpyDeviceToHost, stream);
              cudaFreeAsync(in, stream);
              cudaFreeAsync(out, stream);
              const bool fine = cudaStreamSynchronize(stream) == cudaSuccess;
              cudaStreamDestroy(stream);
              return fine && back == std::vector<int>(kSize, 5);
            }));
}
TEST(Memory, UseBeforeAllocationOnAnotherStreamShows) {
  const auto run = [](bool wait) {
    return count_orders([wait] {
      cudaStream_t first, second;
      cudaEvent_t allocated;
      cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
      cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
      cudaEventCreate(&allocated);
      int* memory;
      cudaMallocAsync(&memory, 400, first);
      cudaEventRecord(allocated, first);
      if (wait) cudaStreamWaitEvent(second, allocated, 0);
      cudaMemsetAsync(memory, 0, 400, second);
      const bool fine = cudaStreamSynchronize(second) == cudaSuccess;
      simgpu::clear_fault();
      cudaStreamDestroy(first);
      cudaStreamDestroy(second);
      cudaEventDestroy(allocated);
      cudaFree(memory);
      return fine;
    });
  };
  EXPECT_LT(run(false), 20);
  EXPECT_EQ(20, run(true));
}

}  // namespace
