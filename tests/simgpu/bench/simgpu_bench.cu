// How fast the simulated GPU executes: lane instructions a second on elementwise code, multiply-adds a second
// of mma, the time of 512 x 512 x 512 products through shared memory, of a short kernel's launch, and of
// reading a module of 1 MB of PTX. Times are those of the processor, of all host threads added up: rates are
// for one core, and another program beside it disturbs them little. Each with the checkers off and on.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
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

// C (n, n) = A (n, n) B^T, B (n, n), bf16: 64 x 64 of C a block, a two-stage cp.async pipeline of 32 columns.
__global__ void __launch_bounds__(128)
    pipelined_product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n) {
  constexpr int kPitch = 40;  // 32 columns, 8 of padding: no bank conflicts
  __shared__ alignas(16) __nv_bfloat16 sa[2][64][kPitch], sb[2][64][kPitch];
  const int t = threadIdx.x, warp = t / 32, lane = t % 32, row = blockIdx.y * 64, col = blockIdx.x * 64;
  const auto shared = [](const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); };
  const auto load = [&](int stage, int k) {
    for (int e = t; e < 256; e += 128) {
      const int r = e / 4, part = e % 4 * 8;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared(&sa[stage][r][part])),
                   "l"(a + (row + r) * n + k + part));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared(&sb[stage][r][part])),
                   "l"(b + (col + r) * n + k + part));
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sums[8][4] = {};
  load(0, 0);
  for (int k = 0; k < n; k += 32) {
    const int stage = k / 32 % 2;
    if (k + 32 < n) {
      load(1 - stage, k + 32);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < 32; step += 16) {
      unsigned ra[4], rb[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
                   : "r"(shared(&sa[stage][warp * 16 + lane % 16][step + lane / 16 * 8])));
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(rb[0]), "=r"(rb[1]), "=r"(rb[2]), "=r"(rb[3])
                     : "r"(shared(&sb[stage][j * 8 + lane / 16 * 8 + lane % 8][step + lane / 8 % 2 * 8])));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float* d = sums[j + h];
          asm volatile(
              "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
              "{%0,%1,%2,%3};"
              : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
              : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[2 * h]), "r"(rb[2 * h + 1]));
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    for (int i = 0; i < 4; ++i)
      c[(row + warp * 16 + lane / 4 + 8 * (i / 2)) * n + col + j * 8 + lane % 4 * 2 + i % 2] = sums[j][i];
  }
}
__global__ void increment(float* p) { p[blockIdx.x * blockDim.x + threadIdx.x] += 1; }

double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }
double seconds(const std::function<void()>& run) {  // median of five
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    const double start = processor_seconds();
    run();
    if (cudaDeviceSynchronize() != cudaSuccess) std::exit(1);
    if (i > 0) times.push_back(processor_seconds() - start);
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
  report("polynomial, 1 M elements", "G lane instr/s", 0, [=] { polynomial<<<n / 256, 256>>>(x, y, n, 64); });
  report("y += a x, 1 M elements as float4", "G lane instr/s", 0, [=] {
    scale_add<<<n / 1024, 256>>>(reinterpret_cast<const float4*>(x), reinterpret_cast<float4*>(y), 2.0f,
                                 n / 4);
  });
  report("GELU, 1 M elements", "G lane instr/s", 0, [=] { gelu<<<432, 256>>>(x, y, n); });
  report("mma m16n8k16 bf16", "GMAC/s", 64.0 * 4000 * 2048, [=] { mma_loop<<<64, 32>>>(m, 4000); });
  report("512^3 fp32 through shared memory", "GMAC/s", 512.0 * 512 * 512,
         [=] { tiled_product<<<dim3(8, 8), 256>>>(m, m + 512 * 512, m + 2 * 512 * 512, 512); });
  auto* const half = reinterpret_cast<__nv_bfloat16*>(m);
  report("512^3 bf16, cp.async ldmatrix mma", "GMAC/s", 512.0 * 512 * 512,
         [=] { pipelined_product<<<dim3(8, 8), 128>>>(half, half + 512 * 512, m + 512 * 512, 512); });
  report("launch of 1 block of 32", "M launches/s", 1e6, [=] {
    for (int k = 0; k < 1000; ++k) increment<<<1, 32>>>(x);
  });
  report("launch of 8 blocks of 256", "M launches/s", 1e6, [=] {
    for (int k = 0; k < 1000; ++k) increment<<<8, 256>>>(x);
  });
  if (std::strlen(filter) > 0) return 0;
  const std::string ptx = large_module();
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    const double start = processor_seconds();
    const auto module = simgpu::parse_module(ptx, 0);
    unsigned long long bytes = 0;
    for (int k = 0;; ++k) {
      simgpu::Kernel* kernel = module->find_kernel("kernel_" + std::to_string(k));
      if (kernel == nullptr) break;
      bytes += kernel->local_bytes();  // decodes the body
    }
    times.push_back(processor_seconds() - start + 0 * static_cast<double>(bytes));
  }
  std::sort(times.begin(), times.end());
  std::printf("parse and decode %.2f MB of PTX: %.1f ms\n", static_cast<double>(ptx.size()) * 1e-6,
              times[2] * 1e3);
  for (float* p : {x, y, m}) cudaFree(p);
}
