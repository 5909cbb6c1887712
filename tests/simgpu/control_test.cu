// A corpus of kernels, each against a host result: control flow, calls, warp collectives, barriers, atomics,
// local and dynamic shared memory, parameters, printf, and a product through cp.async, ldmatrix and mma.
#include <algorithm>
#include <numeric>
#include <random>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "support.h"

namespace {

constexpr int kThreads = 256;

// Runs kernel(out) with 256 threads in blocks of `block` and compares with want(thread).
template <class Kernel, class Want>
void expect_each(Kernel kernel, Want want, int block = kThreads) {
  DeviceArray<int> out(std::vector<int>(kThreads, -1));
  kernel<<<kThreads / block, block>>>(out);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<int> got = out.host();
  for (int t = 0; t < kThreads; ++t) ASSERT_EQ(want(t), got[t]) << "thread " << t;
}
__device__ int thread_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// --- control flow: the same code on host and device ---

#define FLOW(name, ...)                                                                       \
  struct name {                                                                               \
    __host__ __device__ static int of(int t) { __VA_ARGS__ }                                  \
  };                                                                                          \
  __global__ void kernel_##name(int* out) { out[thread_index()] = name::of(thread_index()); } \
  TEST(Flow, name) {                                                                          \
    expect_each(kernel_##name, [](int t) { return name::of(t); });                            \
  }

FLOW(IfElse, return t % 2 == 0 ? t * 3 : t - 7;)
FLOW(
    NestedIf, int x = t; if (t % 2 != 0) {
      if (t % 3 == 0)
        x += 5;
      else
        x *= 2;
      x ^= 1;
    } else if (t > 100) x = -x;
    return x + 1;)
FLOW(LoopOfLaneLength, int x = 0; for (int i = 0; i < t; ++i) x += i * i; return x;)
FLOW(
    BreakAndContinue, int x = 0; for (int i = 0; i < 100; ++i) {
      if (i == t % 50) break;
      if (i % 3 == t % 3) continue;
      x += i;
    } return x;)
FLOW(
    NestedLoops, int x = 0; for (int i = 0; i <= t % 7; ++i) {
      for (int j = i; j < t % 11; ++j) {
        if ((i + j) % 5 == 4) break;
        x += i * j + 1;
      }
    } return x;)
FLOW(
    WhileCollatz, int n = t + 1; int steps = 0; while (n != 1) {
      n = n % 2 == 0 ? n / 2 : 3 * n + 1;
      ++steps;
    } return steps;)
FLOW(
    DoWhile, int x = t; int n = 0; do {
      x = x * 5 % 257;
      ++n;
    } while (x > 60 && n < 40);
    return x * 100 + n;)
FLOW(EarlyReturn, if (t % 5 == 0) return 1; for (int i = 2; i < t; ++i) if (t % i == 0) return i; return 0;)
FLOW(
    SwitchDense, int x = 0; for (int i = 0; i < 3; ++i) switch ((t + i) % 9) {
      case 0:
        x += 1;
        break;
      case 1:
        x += 20;
      case 2:
        x += 300;
        break;
      case 3:
        x -= 4;
        break;
      case 4:
        x ^= 55;
        break;
      case 5:
        x += 6 * t;
        break;
      case 6:
        x = -x;
        break;
      case 7:
        x += 7;
        break;
      default:
        x *= 2;
    } return x;)
FLOW(ShortCircuit, const bool a = t % 3 == 0 && (t % 5 == 1 || t > 40); const bool b = t < 200 || t % 7 == 2;
     return a * 2 + b;)
FLOW(LocalArray, int v[16]; for (int i = 0; i < 16; ++i) v[i] = i * t; int x = 0;
     for (int i = 0; i < 16; ++i) x += v[(i * 7 + t) % 16] * (i + 1); return x;)
FLOW(
    InsertionSort, int v[8]; for (int i = 0; i < 8; ++i) v[i] = (t * 37 + i * 101) % 53;
    for (int i = 1; i < 8; ++i) {
      const int x = v[i];
      int j = i;
      while (j > 0 && v[j - 1] > x) {
        v[j] = v[j - 1];
        --j;
      }
      v[j] = x;
    } int sum = 0;
    for (int i = 0; i < 8; ++i) sum = sum * 7 + v[i]; return sum;)
FLOW(
    BitTricks, unsigned x = t * 2654435761u; int n = 0; while (x != 0) {
      x &= x - 1;
      ++n;
    } return n;)
FLOW(Goto, int x = t; again : x = x * 3 + 1; if (x % 7 != 0 && x < 100000) goto again; return x;)

__host__ __device__ __noinline__ int fibonacci(int n) {
  return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
FLOW(Recursion, return fibonacci(t % 12);)
struct Pair {
  long long sum;
  int count;
};
__host__ __device__ __noinline__ Pair tally(Pair p, int x) {
  p.sum += x;
  p.count += x % 2;
  return p;
}
FLOW(StructByValue, Pair p{0, 0}; for (int i = 0; i < t % 20; ++i) p = tally(p, i* t);
     return static_cast<int>(p.sum) * 3 + p.count;)

struct Settings {
  char tag;
  double factor;
  int offsets[5];
  short small[3];
};
__global__ void struct_parameter(int* out, Settings s) {
  const int t = thread_index();
  out[t] = static_cast<int>(s.factor * s.offsets[t % 5]) + s.small[t % 3] + s.tag;
}
TEST(Parameters, Struct) {
  const Settings s{'x', 2.5, {4, 8, 12, 16, 20}, {1, 2, 3}};
  DeviceArray<int> out(kThreads);
  struct_parameter<<<1, kThreads>>>(out, s);
  const auto got = out.host();
  for (int t = 0; t < kThreads; ++t)
    EXPECT_EQ(static_cast<int>(2.5 * s.offsets[t % 5]) + s.small[t % 3] + 'x', got[t]);
}
__global__ void say(int n) { printf("thread %d of %s: %.2f %lld%%\n", n, "one", 1.5, 1ll << 40); }
TEST(Parameters, Printf) {
  testing::internal::CaptureStdout();
  say<<<1, 1>>>(7);
  cudaDeviceSynchronize();
  EXPECT_EQ("thread 7 of one: 1.50 1099511627776%\n", testing::internal::GetCapturedStdout());
}

// --- warp collectives ---

#define LANES(name, expression, want)            \
  __global__ void kernel_##name(int* out) {      \
    const int t = thread_index(), lane = t % 32; \
    (void)lane;                                  \
    out[t] = static_cast<int>(expression);       \
  }                                              \
  TEST(Warp, name) {                             \
    expect_each(kernel_##name, [](int t) {       \
      const int lane = t % 32, base = t - lane;  \
      (void)lane, (void)base;                    \
      return static_cast<int>(want);             \
    });                                          \
  }
constexpr unsigned kAll = 0xffffffffu;
LANES(ShuffleIndex, __shfl_sync(kAll, t * 3, 31 - lane), (base + 31 - lane) * 3)
LANES(ShuffleIndexWidth8, __shfl_sync(kAll, t, 3, 8), base + lane / 8 * 8 + 3)
LANES(ShuffleUp, __shfl_up_sync(kAll, t, 5), lane < 5 ? t : t - 5)
LANES(ShuffleUpWidth16, __shfl_up_sync(kAll, t, 5, 16), lane % 16 < 5 ? t : t - 5)
LANES(ShuffleDown, __shfl_down_sync(kAll, t, 7), lane + 7 > 31 ? t : t + 7)
LANES(ShuffleDownWidth4, __shfl_down_sync(kAll, t, 1, 4), lane % 4 == 3 ? t : t + 1)
LANES(ShuffleXor, __shfl_xor_sync(kAll, t, 21), base + (lane ^ 21))
LANES(ShuffleOfDoubles, __shfl_xor_sync(kAll, t * 0.5, 1) * 4, (base + (lane ^ 1)) * 2)
LANES(Ballot, __ballot_sync(kAll, lane % 3 == 0), 0x49249249)
LANES(AnyAll, __any_sync(kAll, t == 40) * 2 + __all_sync(kAll, t != 40), (base == 32 ? 2 : 1))
LANES(MatchAny, __match_any_sync(kAll, lane % 4), 0x11111111 << (lane % 4))
LANES(ReduceAdd, __reduce_add_sync(kAll, t), 32 * base + 496)
LANES(ReduceMin, __reduce_min_sync(kAll, (t * 37) % 101 - 50), [&] {
  int m = 1000;
  for (int l = 0; l < 32; ++l) m = std::min(m, ((base + l) * 37) % 101 - 50);
  return m;
}())
LANES(ReduceXor, __reduce_xor_sync(kAll, static_cast<unsigned>(t* t)), [&] {
  int m = 0;
  for (int l = 0; l < 32; ++l) m ^= (base + l) * (base + l);
  return m;
}())
LANES(HalfWarpMasks, (lane < 16 ? __reduce_add_sync(0xffffu, 1) : __reduce_add_sync(0xffff0000u, 2)),
      (lane < 16 ? 16 : 32))
LANES(BallotInABranch,
      (lane % 2 == 0 ? __ballot_sync(0x55555555u, lane < 8) : __popc(__ballot_sync(0xaaaaaaaau, 1))),
      (lane % 2 == 0 ? 0x55 : 16))

// --- barriers and shared memory ---

__global__ void block_reverse(int* out) {
  extern __shared__ int dynamic[];
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  dynamic[t] = thread_index();
  __syncthreads();
  out[thread_index()] = dynamic[n - 1 - t];
}
TEST(Block, DynamicSharedMemory) {
  DeviceArray<int> out(kThreads);
  block_reverse<<<4, 64, 64 * 4>>>(out);
  const auto got = out.host();
  for (int t = 0; t < kThreads; ++t) EXPECT_EQ(t / 64 * 64 + 63 - t % 64, got[t]);
}
__global__ void votes_of_block(int* out) {
  const int t = thread_index();
  out[t] = __syncthreads_count(t % 3 == 0) * 4 + __syncthreads_and(t < 300) * 2 + __syncthreads_or(t == 77);
}
TEST(Block, SyncthreadsCountAndOr) {
  expect_each(votes_of_block, [](int) { return 86 * 4 + 2 + 1; });
}
// Warps 0 to 3 produce, 4 to 7 consume: bar.arrive and bar.sync with a name and a number of threads.
__global__ void named_barriers(int* out) {
  __shared__ int box[128];
  const int t = static_cast<int>(threadIdx.x);
  if (t < 128) {
    box[t] = t * t;
    asm volatile("bar.arrive 1, 256;" ::: "memory");
    out[t] = t;
  } else {
    asm volatile("bar.sync 1, 256;" ::: "memory");
    out[t] = box[255 - t];
  }
}
TEST(Block, NamedBarriers) {
  expect_each(named_barriers, [](int t) { return t < 128 ? t : (255 - t) * (255 - t); });
}
__global__ void block_sum_tree(int* out) {
  __shared__ int sums[kThreads];
  const unsigned t = threadIdx.x;
  sums[t] = static_cast<int>(t) * 2 + 1;
  __syncthreads();
  for (unsigned stride = kThreads / 2; stride > 0; stride /= 2) {
    if (t < stride) sums[t] += sums[t + stride];
    __syncthreads();
  }
  out[t] = sums[0];
}
TEST(Block, TreeReduction) {
  expect_each(block_sum_tree, [](int) { return kThreads * kThreads; });
}
__global__ void transpose(const float* in, float* out, int n) {
  __shared__ float tile[32][33];
  const int x = blockIdx.x * 32 + threadIdx.x;
  for (int r = threadIdx.y; r < 32; r += 8) tile[r][threadIdx.x] = in[(blockIdx.y * 32 + r) * n + x];
  __syncthreads();
  for (int r = threadIdx.y; r < 32; r += 8)
    out[(blockIdx.x * 32 + r) * n + blockIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][r];
}
TEST(Block, Transpose) {
  constexpr int n = 96;
  std::vector<float> values(n * n);
  std::iota(values.begin(), values.end(), 0.0f);
  DeviceArray<float> in(values), out(n * n);
  simgpu::clear_launches();
  transpose<<<dim3(3, 3), dim3(32, 8)>>>(in, out, n);
  const auto got = out.host();
  for (int r = 0; r < n; ++r) {
    for (int c = 0; c < n; ++c) ASSERT_EQ(values[c * n + r], got[r * n + c]);
  }
  const auto& counters = simgpu::launches().back().counters;
  EXPECT_EQ(counters.shared_ideal_wavefronts, counters.shared_wavefronts);
}

// A lock that each lane of a warp takes in turn, while the other warps wait at a barrier.
__global__ void lock_in_a_warp(int* out) {
  __shared__ int lock, sum;
  if (threadIdx.x == 0) lock = 0, sum = 0;
  __syncthreads();
  if (threadIdx.x < 32) {
    while (atomicCAS(&lock, 0, 1) != 0) {
    }
    __threadfence_block();
    *static_cast<volatile int*>(&sum) += static_cast<int>(threadIdx.x);
    __threadfence_block();
    atomicExch(&lock, 0);
  }
  __syncthreads();
  out[thread_index()] = sum;
}
TEST(Block, SpinLockInsideAWarp) {
  expect_each(
      lock_in_a_warp, [](int) { return 496; }, 64);
}
// Each block waits for the one before it, whatever the order in which they begin: in a loop, in one that
// makes a call, as code without optimisation does, and in one that counts as well.
__device__ __noinline__ int peek(volatile int* turn) { return *turn; }
enum class Wait { kLoop, kCall, kCountedCall };
template <Wait kWait>
__global__ void one_after_another(volatile int* turn, int* out, int* rounds) {
  if (threadIdx.x == 0) {
    const int mine = static_cast<int>(blockIdx.x);
    int n = 0;
    if (kWait == Wait::kLoop)
      while (*turn != mine) __nanosleep(100);
    if (kWait == Wait::kCall)
      while (peek(turn) != mine) __nanosleep(100);
    if (kWait == Wait::kCountedCall)
      while (peek(turn) != mine) ++n;
    rounds[mine] = n;
    out[mine] = mine * 3;
    __threadfence();
    *turn = mine + 1;
  }
  __syncthreads();
}
template <Wait kWait>
void expect_one_after_another(int blocks) {
  for (const uint64_t seed : {0, 3, 8}) {
    simgpu::settings().order_seed = seed;
    DeviceArray<int> turn(std::vector<int>{0}), out(blocks), rounds(blocks);
    one_after_another<kWait><<<blocks, 64>>>(turn, out, rounds);
    const std::vector<int> got = out.host();
    for (int b = 0; b < blocks; ++b) EXPECT_EQ(3 * b, got[b]);
  }
  simgpu::settings().order_seed = 0;
}
TEST(Block, BlocksWaitForEachOther) { expect_one_after_another<Wait::kLoop>(200); }
TEST(Block, BlocksWaitForEachOtherThroughCalls) { expect_one_after_another<Wait::kCall>(50); }
TEST(Block, BlocksCountWhileTheyWait) { expect_one_after_another<Wait::kCountedCall>(4); }

// --- atomics ---

template <class T>
struct Cells {
  T add, sub, min, max, exch, cas;
  unsigned inc, dec, bits_and, bits_or, bits_xor;
};
__global__ void atomics(Cells<int>* c, unsigned long long* wide, float* f, double* d, __half2* h) {
  const int t = thread_index();
  atomicAdd(&c->add, t);
  atomicSub(&c->sub, t);
  atomicMin(&c->min, t - 100);
  atomicMax(&c->max, t * 7 % 256);
  atomicInc(&c->inc, 99);
  atomicDec(&c->dec, 9);
  atomicAnd(&c->bits_and, ~(1u << t % 16));
  atomicOr(&c->bits_or, 1u << t % 20);
  atomicXor(&c->bits_xor, 1u << t % 7);
  for (int old = c->cas, seen;; old = seen) {  // adds by compare and swap
    seen = atomicCAS(&c->cas, old, old + 3);
    if (seen == old) break;
  }
  atomicExch(&c->exch, 5);
  atomicAdd(wide, 1ull << 33);
  atomicMax(wide + 1, static_cast<unsigned long long>(t) << 32);
  atomicAdd(f, 0.5f);
  atomicAdd(d, 0.25);
  atomicAdd(h, __floats2half2_rn(1.0f, 2.0f));
  atomicAdd_block(&c->add, 1);
  atomicAdd_system(&c->add, 1);
}
TEST(Atomics, EveryKind) {
  constexpr int n = 1024;
  Cells<int> start{};
  start.cas = 1;
  start.bits_and = ~0u;
  DeviceArray<Cells<int>> cells(std::vector<Cells<int>>{start});
  DeviceArray<unsigned long long> wide(std::vector<unsigned long long>{0, 0});
  DeviceArray<float> f(std::vector<float>{0});
  DeviceArray<double> d(std::vector<double>{0});
  DeviceArray<__half2> h(std::vector<__half2>{__floats2half2_rn(0, 0)});
  atomics<<<n / 128, 128>>>(cells, wide, f, d, h);
  CUDA_OK(cudaDeviceSynchronize());
  const Cells<int> c = cells.host()[0];
  EXPECT_EQ(n * (n - 1) / 2 + 2 * n, c.add);
  EXPECT_EQ(-n * (n - 1) / 2, c.sub);
  EXPECT_EQ(-100, c.min);
  EXPECT_EQ(255, c.max);
  EXPECT_EQ(n % 100, static_cast<int>(c.inc));
  unsigned dec = 0;
  for (int i = 0; i < n; ++i) dec = dec == 0 || dec > 9 ? 9 : dec - 1;
  EXPECT_EQ(dec, c.dec);
  EXPECT_EQ(0xffff0000u, c.bits_and);
  EXPECT_EQ(0xfffffu, c.bits_or);
  unsigned bits = 0;
  for (int t = 0; t < n; ++t) bits ^= 1u << t % 7;
  EXPECT_EQ(bits, c.bits_xor);
  EXPECT_EQ(1 + 3 * n, c.cas);
  EXPECT_EQ(5, c.exch);
  EXPECT_EQ(static_cast<unsigned long long>(n) << 33, wide.host()[0]);
  EXPECT_EQ(static_cast<unsigned long long>(n - 1) << 32, wide.host()[1]);
  EXPECT_EQ(n * 0.5f, f.host()[0]);
  EXPECT_EQ(n * 0.25, d.host()[0]);
  EXPECT_EQ(1024.0f, __low2float(h.host()[0]));
  EXPECT_EQ(2048.0f, __high2float(h.host()[0]));
}
__global__ void histogram(const unsigned char* in, int n, unsigned* out) {
  __shared__ unsigned bins[16];
  if (threadIdx.x < 16) bins[threadIdx.x] = 0;
  __syncthreads();
  for (int i = thread_index(); i < n; i += static_cast<int>(gridDim.x * blockDim.x))
    atomicAdd(&bins[in[i] % 16], 1u);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&out[threadIdx.x], bins[threadIdx.x]);
}
TEST(Atomics, Histogram) {
  std::mt19937 random(1);
  std::vector<unsigned char> values(10'000);
  std::vector<unsigned> want(16);
  for (auto& v : values) ++want[(v = static_cast<unsigned char>(random())) % 16];
  DeviceArray<unsigned char> in(values);
  DeviceArray<unsigned> out(std::vector<unsigned>(16, 0));
  histogram<<<5, 128>>>(in, 10'000, out);
  EXPECT_EQ(want, out.host());
}

// --- a product C (64, 64) = A (64, K) B^T, B (64, K), bf16, through a two-stage cp.async pipeline ---

__global__ void pipelined_product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int K) {
  __shared__ alignas(16) __nv_bfloat16 sa[2][64][24], sb[2][64][24];  // 16 columns, 8 of padding
  const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
  const auto load = [&](int stage, int k) {
    const int row = t % 64, part = t / 64 * 8;
    const auto copy = [](void* to, const void* from) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       static_cast<unsigned>(__cvta_generic_to_shared(to))),
                   "l"(from));
    };
    copy(&sa[stage][row][part], a + row * K + k + part);
    copy(&sb[stage][row][part], b + row * K + k + part);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sums[8][4] = {};
  load(0, 0);
  for (int k = 0; k < K; k += 16) {
    const int stage = k / 16 % 2;
    if (k + 16 < K) {
      load(1 - stage, k + 16);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
    unsigned ra[4];
    const unsigned at =
        static_cast<unsigned>(__cvta_generic_to_shared(&sa[stage][warp * 16 + lane % 16][lane / 16 * 8]));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
                 : "r"(at));
    for (int n = 0; n < 8; ++n) {
      unsigned rb[2];
      const unsigned bt =
          static_cast<unsigned>(__cvta_generic_to_shared(&sb[stage][n * 8 + lane % 8][lane / 8 % 2 * 8]));
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(rb[0]), "=r"(rb[1])
                   : "r"(bt));
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
          : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
    }
    __syncthreads();
  }
  for (int n = 0; n < 8; ++n) {
    for (int i = 0; i < 4; ++i)
      c[(warp * 16 + lane / 4 + 8 * (i / 2)) * 64 + n * 8 + lane % 4 * 2 + i % 2] = sums[n][i];
  }
}
TEST(Product, CpAsyncLdmatrixMma) {
  constexpr int K = 80;
  std::mt19937 random(5);
  std::vector<__nv_bfloat16> a(64 * K), b(64 * K);
  for (auto* m : {&a, &b}) {
    for (auto& x : *m) x = __float2bfloat16(static_cast<float>(static_cast<int>(random() % 17) - 8));
  }
  DeviceArray<__nv_bfloat16> da(a), db(b);
  DeviceArray<float> dc(64 * 64);
  simgpu::clear_launches();
  pipelined_product<<<1, 128>>>(da, db, dc, K);
  CUDA_OK(cudaDeviceSynchronize());
  const auto c = dc.host();
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < 64; ++n) {
      float want = 0;
      for (int k = 0; k < K; ++k) want += __bfloat162float(a[m * K + k]) * __bfloat162float(b[n * K + k]);
      ASSERT_EQ(want, c[m * 64 + n]) << m << ", " << n;
    }
  }
  const auto& counters = simgpu::launches().back().counters;
  EXPECT_EQ(static_cast<uint64_t>(4 * 8 * K / 16), counters.mma_count);
  EXPECT_EQ(counters.mma_count * 2 * 16 * 8 * 16, counters.mma_flops);
  EXPECT_EQ(0u, counters.bank_conflicts());
  // Of four warps a step: two copies, one ldmatrix of A and eight of B.
  EXPECT_EQ(4u * (K / 16) * (2 + 1 + 8), counters.shared_requests);
}

}  // namespace
