// How fast the simulated GPU executes: lane instructions a second on elementwise code, multiply-adds a second
// of mma, the time of a 512 x 512 x 512 product through shared memory, and of reading a module of 1 MB of
// PTX. Rates are for all host threads together (ERGON_SIMGPU_THREADS); each with the checkers off and on.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <cuda_bf16.h>

#include "module.h"
#include "settings.h"
#include "simgpu/simgpu.h"

namespace {

__global__ void polynomial(const float* in, float* out, int n, int rounds) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = in[i], y = x;
  for (int r = 0; r < rounds; ++r) y = (y * x + 0.5f) * x - 0.25f;
  out[i] = y;
}
__global__ void scale_add(const float4* x, float4* y, float a, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float4 u = x[i];
  float4 v = y[i];
  v.x += a * u.x, v.y += a * u.y, v.z += a * u.z, v.w += a * u.w;
  y[i] = v;
}
__global__ void gelu(const float* x, float* y, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    const float u = x[i], t = 0.79788456f * (u + 0.044715f * u * u * u);
    y[i] = 0.5f * u * (1.0f + tanhf(t));
  }
}
__global__ void mma_loop(float* out, int rounds) {
  float d[4] = {};
  const unsigned a = threadIdx.x, b = threadIdx.x * 3;
  for (int r = 0; r < rounds; ++r) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a), "r"(b));
  }
  for (int i = 0; i < 4; ++i) out[(blockIdx.x * 4 + i) * 32 + threadIdx.x] = d[i];
}
// One thread a 4 x 4 piece of a 64 x 64 tile, 16 columns of A at a time.
__global__ void tiled_product(const float* a, const float* b, float* c, int n) {
  __shared__ float sa[16][68], sb[16][64];
  const int t = threadIdx.x, row = blockIdx.y * 64, col = blockIdx.x * 64, y = t / 16 * 4, x = t % 16 * 4;
  float sums[4][4] = {};
  for (int k = 0; k < n; k += 16) {
    for (int e = t; e < 1024; e += 256) {
      sa[e % 16][e / 16] = a[(row + e / 16) * n + k + e % 16];
      sb[e / 64][e % 64] = b[(k + e / 64) * n + col + e % 64];
    }
    __syncthreads();
    for (int kk = 0; kk < 16; ++kk) {
      const float4 u = *reinterpret_cast<const float4*>(&sa[kk][y]),
                   v = *reinterpret_cast<const float4*>(&sb[kk][x]);
      const float us[] = {u.x, u.y, u.z, u.w}, vs[] = {v.x, v.y, v.z, v.w};
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) sums[i][j] += us[i] * vs[j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) c[(row + y + i) * n + col + x + j] = sums[i][j];
  }
}

double seconds(const std::function<void()>& run) {  // median of five
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    if (cudaDeviceSynchronize() != cudaSuccess) std::exit(1);
    if (i > 0)
      times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}
void checkers(bool on) {
  simgpu::Settings& s = simgpu::settings();
  s.check_memory = s.check_initialised = s.check_shared_races = s.check_global_races = on;
}
template <class T>
T* device(size_t n) {
  T* p = nullptr;
  if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess || cudaMemset(p, 0, n * sizeof(T)) != cudaSuccess)
    std::exit(1);
  return p;
}

const char* filter = "";  // only what has this in its name

// `work` in units of the rate, or 0: from the lane instructions counted.
void report(const char* what, const char* unit, double work, const std::function<void()>& run) {
  if (std::strstr(what, filter) == nullptr) return;
  double rates[2], times[2];
  for (const bool on : {false, true}) {
    checkers(on);
    times[on] = seconds(run);
    const double amount =
        work > 0 ? work : static_cast<double>(simgpu::launches().back().counters.lane_instructions);
    rates[on] = amount / times[on] * 1e-9;
  }
  std::printf("%-34s %7.2f %s (%7.1f ms) without, %7.2f (%7.1f ms) with checkers: cost %.1f x\n", what,
              rates[0], unit, times[0] * 1e3, rates[1], times[1] * 1e3, times[1] / times[0]);
}

std::string large_module() {
  std::string ptx = ".version 9.0\n.target sm_80\n.address_size 64\n";
  for (int k = 0; ptx.size() < 1'000'000; ++k) {
    ptx += ".visible .entry kernel_" + std::to_string(k)
           + "(.param .u64 out)\n{\n.reg .b64 %rd<4>;\n.reg .b32 %r<1000>;\n.reg .pred %p<2>;\n";
    ptx += "ld.param.u64 %rd1, [out];\nmov.u32 %r1, %tid.x;\n";
    for (int i = 2; i < 900; ++i)
      ptx += "mad.lo.s32 \t%r" + std::to_string(i) + ", %r" + std::to_string(i - 1) + ", 17, 3;\n";
    ptx += "st.global.u32 [%rd1], %r899;\nret;\n}\n";
  }
  return ptx;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) filter = argv[1];
  const int n = 1 << 20;
  float *x = device<float>(n), *y = device<float>(n), *m = device<float>(512 * 512 * 3);
  std::printf("%u host threads\n", simgpu::settings().threads > 0
                                       ? static_cast<unsigned>(simgpu::settings().threads)
                                       : std::thread::hardware_concurrency());
  report("polynomial, 1 M elements", "G lane instr/s", 0, [=] { polynomial<<<n / 256, 256>>>(x, y, n, 64); });
  report("y += a x, 1 M elements as float4", "G lane instr/s", 0, [=] {
    scale_add<<<n / 1024, 256>>>(reinterpret_cast<const float4*>(x), reinterpret_cast<float4*>(y), 2.0f,
                                 n / 4);
  });
  report("GELU, 1 M elements", "G lane instr/s", 0, [=] { gelu<<<432, 256>>>(x, y, n); });
  report("mma m16n8k16 bf16", "GMAC/s", 64.0 * 4000 * 2048, [=] { mma_loop<<<64, 32>>>(m, 4000); });
  report("512^3 fp32 through shared memory", "GMAC/s", 512.0 * 512 * 512,
         [=] { tiled_product<<<dim3(8, 8), 256>>>(m, m + 512 * 512, m + 2 * 512 * 512, 512); });
  if (std::strlen(filter) > 0) return 0;
  const std::string ptx = large_module();
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto module = simgpu::parse_module(ptx, 0);
    unsigned long long bytes = 0;
    for (int k = 0;; ++k) {
      simgpu::Kernel* kernel = module->find_kernel("kernel_" + std::to_string(k));
      if (kernel == nullptr) break;
      bytes += kernel->local_bytes();  // decodes the body
    }
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()
                    + 0 * static_cast<double>(bytes));
  }
  std::sort(times.begin(), times.end());
  std::printf("parse and decode %.2f MB of PTX: %.1f ms\n", static_cast<double>(ptx.size()) * 1e-6,
              times[2] * 1e3);
  for (float* p : {x, y, m}) cudaFree(p);
}
