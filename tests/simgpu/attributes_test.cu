// Attributes of devices, functions and launches, and the occupancy that follows from them.
#include "support.h"

namespace {

// Known to CUDA and not simulated: refused, by name.
#define EXPECT_REFUSED(name, call)                                                            \
  do {                                                                                        \
    testing::internal::CaptureStderr();                                                       \
    EXPECT_EQ(cudaErrorNotSupported, call);                                                   \
    EXPECT_EQ("simgpu: " name " is not simulated\n", testing::internal::GetCapturedStderr()); \
    cudaGetLastError();                                                                       \
  } while (false)
// Not known to CUDA either.
#define EXPECT_INVALID(call)                \
  do {                                      \
    EXPECT_EQ(cudaErrorInvalidValue, call); \
    cudaGetLastError();                     \
  } while (false)

__global__ void set_all(int* out, int value) { out[blockIdx.x * blockDim.x + threadIdx.x] = value; }
TEST(Launch, Attributes) {
  constexpr int kSize = 1024;
  DeviceArray<int> out(std::vector<int>(kSize, 0));
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(4);
  config.blockDim = dim3(256);
  config.attrs = &attribute;
  config.numAttrs = 1;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  CUDA_OK(cudaLaunchKernelEx(&config, set_all, out.data(), 8));
  EXPECT_EQ(std::vector<int>(kSize, 8), out.host());
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 1, 1};
  testing::internal::CaptureStderr();
  EXPECT_EQ(cudaErrorNotSupported, cudaLaunchKernelEx(&config, set_all, out.data(), 9));
  EXPECT_NE(std::string::npos, testing::internal::GetCapturedStderr().find("sm_80 has no clusters"));
  attribute.id = cudaLaunchAttributeProgrammaticEvent;
  EXPECT_REFUSED("cudaLaunchAttributeProgrammaticEvent", cudaLaunchKernelEx(&config, set_all, out.data(), 9));
  for (const int unknown : {cudaLaunchAttributeSynchronizationPolicy + 0, 99}) {  // one of streams, and none
    attribute.id = static_cast<cudaLaunchAttributeID>(unknown);
    EXPECT_INVALID(cudaLaunchKernelEx(&config, set_all, out.data(), 9));
  }
  EXPECT_EQ(std::vector<int>(kSize, 8), out.host());
  cudaGetLastError();
}

__global__ void __launch_bounds__(256) with_shared(int* out) {
  __shared__ int values[1024];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[255 - threadIdx.x];
}
TEST(Launch, AttributesAndOccupancy) {
  cudaFuncAttributes attributes;
  CUDA_OK(cudaFuncGetAttributes(&attributes, with_shared));
  EXPECT_EQ(4096u, attributes.sharedSizeBytes);
  EXPECT_EQ(256, attributes.maxThreadsPerBlock);
  EXPECT_GT(attributes.numRegs, 4);  // this program holds machine code too
  EXPECT_LE(attributes.numRegs, 64);
  int blocks;
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, with_shared, 256, 0));
  EXPECT_EQ(8, blocks);  // 2,048 threads
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, with_shared, 32, 0));
  EXPECT_EQ(32, blocks);
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, with_shared, 32, 40 * 1024));
  EXPECT_EQ(3, blocks);  // 3 x (40 + 4 + 1) KiB of 164
}

TEST(Launch, AttributesOfAFunction) {
  CUDA_OK(cudaFuncSetAttribute(set_all, cudaFuncAttributePreferredSharedMemoryCarveout, 50));
  EXPECT_INVALID(cudaFuncSetAttribute(set_all, cudaFuncAttributePreferredSharedMemoryCarveout, 101));
  EXPECT_INVALID(cudaFuncSetAttribute(set_all, cudaFuncAttributeMaxDynamicSharedMemorySize, -1));
  EXPECT_INVALID(cudaFuncSetAttribute(set_all, static_cast<cudaFuncAttribute>(3), 1));
  EXPECT_REFUSED("cudaFuncAttributeNonPortableClusterSizeAllowed",
                 cudaFuncSetAttribute(set_all, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaFuncAttributes attributes;
  CUDA_OK(cudaFuncGetAttributes(&attributes, set_all));
  EXPECT_EQ(50, attributes.preferredShmemCarveout);
  EXPECT_EQ(48 * 1024, attributes.maxDynamicSharedSizeBytes);
}
TEST(Devices, Limits) {
  size_t bytes = 0;
  CUDA_OK(cudaDeviceGetLimit(&bytes, cudaLimitStackSize));
  EXPECT_EQ(1024u, bytes);
  CUDA_OK(cudaDeviceSetLimit(cudaLimitStackSize, 4096));
  CUDA_OK(cudaDeviceGetLimit(&bytes, cudaLimitStackSize));
  EXPECT_EQ(4096u, bytes);
  CUDA_OK(cudaDeviceSetLimit(cudaLimitStackSize, 1024));
  EXPECT_REFUSED("cudaLimitPersistingL2CacheSize", cudaDeviceSetLimit(cudaLimitPersistingL2CacheSize, 1));
  EXPECT_EQ(cudaErrorUnsupportedLimit, cudaDeviceGetLimit(&bytes, static_cast<cudaLimit>(77)));
  cudaGetLastError();
}

__global__ void __launch_bounds__(1024, 2) narrow(float* p) { p[threadIdx.x] *= 2; }
__global__ void wide(float* p) {  // sums of which all are alive at once
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = p[i];
#pragma unroll
  for (int i = 0; i < 96; ++i) p[i * 32 + threadIdx.x] = v[95 - i] * v[(i * 7) % 96];
}
TEST(Launch, RegistersLimitOccupancy) {
  cudaFuncAttributes a, b;
  int blocks;
  CUDA_OK(cudaFuncGetAttributes(&a, narrow));
  EXPECT_LE(a.numRegs, 32);
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, narrow, 1024, 0));
  EXPECT_EQ(2, blocks);
  CUDA_OK(cudaFuncGetAttributes(&b, wide));
  EXPECT_GT(b.numRegs, 64);
  CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, wide, 1024, 0));
  EXPECT_EQ(0, blocks);  // 1,024 threads of more than 64 registers
  wide<<<1, 1024>>>(nullptr);
  EXPECT_EQ(cudaErrorLaunchOutOfResources, cudaGetLastError());
}

TEST(Devices, PropertiesOfAnA100) {
  cudaDeviceProp p;
  CUDA_OK(cudaGetDeviceProperties(&p, 0));
  EXPECT_EQ(8, p.major);
  EXPECT_EQ(0, p.minor);
  EXPECT_EQ(108, p.multiProcessorCount);
  EXPECT_EQ(163u * 1024, p.sharedMemPerBlockOptin);
  int value;
  CUDA_OK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
  EXPECT_EQ(108, value);
  EXPECT_REFUSED("cudaDevAttrMaxTexture2DWidth",
                 cudaDeviceGetAttribute(&value, cudaDevAttrMaxTexture2DWidth, 0));
  EXPECT_REFUSED("cudaDevAttrHostNumaId", cudaDeviceGetAttribute(&value, cudaDevAttrHostNumaId, 0));
  for (const int unknown : {0, 44, 92, 9999})
    EXPECT_INVALID(cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(unknown), 0));
  EXPECT_EQ(cudaErrorInvalidDevice, cudaSetDevice(1));
  cudaGetLastError();
}

}  // namespace
