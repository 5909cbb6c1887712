// Fragments of mma, mma.sp and ldmatrix against the formulas of the PTX ISA, written here once more, element
// by element as its sections give them: one-hot matrices show where each register's elements lie.
#include <algorithm>
#include <cstring>
#include <random>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "faults.h"

namespace {

template <int kA, int kB, int kC, class Body>
__global__ void run_mma(const unsigned* a, const unsigned* b, const unsigned* c, const unsigned* e,
                        unsigned* d, Body body) {
  unsigned ra[kA], rb[kB], rc[kC], rd[kC];
  const unsigned lane = threadIdx.x, item = blockIdx.x;
  for (int i = 0; i < kA; ++i) ra[i] = a[(item * kA + i) * 32 + lane];
  for (int i = 0; i < kB; ++i) rb[i] = b[(item * kB + i) * 32 + lane];
  for (int i = 0; i < kC; ++i) rc[i] = c[(item * kC + i) * 32 + lane];
  body(rd, ra, rb, rc, e == nullptr ? 0u : e[item * 32 + lane]);
  for (int i = 0; i < kC; ++i) d[(item * kC + i) * 32 + lane] = rd[i];
}

#define D4 "{%0, %1, %2, %3}"
#define OUT4 "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
#define C4 "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])
#define REGS const unsigned *a, const unsigned *b, const unsigned *c, [[maybe_unused]] unsigned e
// name, instruction, registers of A, of B
#define MMA_A4B2(name, op)                                                         \
  struct name {                                                                    \
    __device__ void operator()(unsigned* d, REGS) const {                          \
      asm(op " " D4 ", {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"          \
          : OUT4                                                                   \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), C4); \
    }                                                                              \
  };
#define MMA_A2B1(name, op)                                                                                \
  struct name {                                                                                           \
    __device__ void operator()(unsigned* d, REGS) const {                                                 \
      asm(op " " D4 ", {%4, %5}, {%6}, {%7, %8, %9, %10};" : OUT4 : "r"(a[0]), "r"(a[1]), "r"(b[0]), C4); \
    }                                                                                                     \
  };
#define SPARSE_A4B4(name, op, selector)                                                                 \
  struct name {                                                                                         \
    __device__ void operator()(unsigned* d, REGS) const {                                               \
      asm(op " " D4 ", {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%12, %13, %14, %15}, %16, " #selector ";" \
          : OUT4                                                                                        \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), C4, \
            "r"(e));                                                                                    \
    }                                                                                                   \
  };
#define SPARSE_A2B2(name, op, selector)                                             \
  struct name {                                                                     \
    __device__ void operator()(unsigned* d, REGS) const {                           \
      asm(op " " D4 ", {%4, %5}, {%6, %7}, {%8, %9, %10, %11}, %12, " #selector ";" \
          : OUT4                                                                    \
          : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]), C4, "r"(e));                \
    }                                                                               \
  };
MMA_A4B2(Bf16K16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
MMA_A4B2(F16K16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
MMA_A2B1(Bf16K8, "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32")
MMA_A2B1(F16K8, "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32")
MMA_A4B2(Tf32K8, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
MMA_A2B1(Tf32K4, "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32")
MMA_A4B2(S8K32, "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32")
MMA_A4B2(U8S8K32, "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32")
MMA_A4B2(S8K32Saturating, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32")
MMA_A2B1(S8K16, "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32")
MMA_A2B1(U8K16, "mma.sync.aligned.m16n8k16.row.col.s32.u8.u8.s32")
#define SP "mma.sp::ordered_metadata.sync.aligned."
SPARSE_A2B2(SparseBf16K16, SP "m16n8k16.row.col.f32.bf16.bf16.f32", 0x3)
SPARSE_A4B4(SparseBf16K32, SP "m16n8k32.row.col.f32.bf16.bf16.f32", 0x0)
SPARSE_A4B4(SparseF16K32, SP "m16n8k32.row.col.f32.f16.f16.f32", 0x1)
SPARSE_A2B2(SparseTf32K8, SP "m16n8k8.row.col.f32.tf32.tf32.f32", 0x2)
SPARSE_A4B4(SparseTf32K16, SP "m16n8k16.row.col.f32.tf32.tf32.f32", 0x1)
SPARSE_A2B2(SparseS8K32, SP "m16n8k32.row.col.s32.s8.s8.s32", 0x1)
SPARSE_A4B4(SparseS8K64, SP "m16n8k64.row.col.s32.s8.s8.s32", 0x0)

SPARSE_A4B4(SparseTf32K16AtZero, SP "m16n8k16.row.col.f32.tf32.tf32.f32", 0x0)

enum class Element { kBf16, kF16, kTf32, kS8, kU8 };
int bits_of(Element t) {
  return t == Element::kTf32 ? 32 : t == Element::kBf16 || t == Element::kF16 ? 16 : 8;
}
unsigned encode(Element t, int value) {
  const float f = static_cast<float>(value);
  unsigned bits;
  std::memcpy(&bits, &f, 4);
  switch (t) {
    case Element::kBf16:
      return bits >> 16;
    case Element::kF16:
      return __half_as_ushort(__float2half(f));
    case Element::kTf32:
      return bits;
    default:
      return static_cast<unsigned char>(value);
  }
}

struct Coordinates {
  int row, col;
};
// Element i of A in lane `lane`, as the sections give it. K of the stored matrix.
Coordinates element_a(Element t, int K, int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if (bits_of(t) == 32) return {i == 0 || i == 2 ? group : group + 8, i < 2 ? thread : thread + 4};
  if (bits_of(t) == 16) {
    if (K == 8) return {i < 2 ? group : group + 8, thread * 2 + (i & 1)};
    return {i < 2 || (4 <= i && i < 6) ? group : group + 8,
            i < 4 ? thread * 2 + (i & 1) : thread * 2 + (i & 1) + 8};
  }
  if (K == 16) return {i < 4 ? group : group + 8, thread * 4 + (i & 3)};
  return {i < 4 || (8 <= i && i < 12) ? group : group + 8,
          i < 8 ? thread * 4 + (i & 3) : thread * 4 + (i & 3) + 16};
}
Coordinates element_b(Element t, int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if (bits_of(t) == 32) return {thread + 4 * i, group};
  if (bits_of(t) == 16) return {thread * 2 + (i & 1) + 8 * (i / 2), group};
  return {thread * 4 + (i & 3) + 16 * (i / 4), group};
}
Coordinates element_c(int lane, int i) {
  return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)};
}

using Matrix = std::vector<int>;  // row-major

struct Case {
  Matrix a, b, c;            // (16, stored K), (K, 8), (16, 8)
  std::vector<int> columns;  // of mma.sp: column in A of each stored element
};

// Packs the cases, runs them in one launch and compares with the product.
template <int kA, int kB, class Body>
void check(Body body, Element t, Element tb, int K, const std::vector<Case>& cases, bool sparse = false,
           int selector = 0, bool saturate = false) {
  const int stored = sparse ? K / 2 : K, per = 32 / bits_of(t);
  const bool integer = t == Element::kS8 || t == Element::kU8;
  ASSERT_EQ(kA * per * 32, 16 * stored);
  ASSERT_EQ(kB * per * 32, 8 * K);
  const size_t n = cases.size();
  std::vector<unsigned> a(n * kA * 32), b(n * kB * 32), c(n * 4 * 32), e(n * 32, 0xdeadbeefu);
  const auto put = [&](std::vector<unsigned>& to, size_t at, Element type, int element, int value) {
    to[at] |= encode(type, value) << (bits_of(type) * (element % per));
  };
  for (size_t item = 0; item < n; ++item) {
    const Case& x = cases[item];
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < kA * per; ++i) {
        const Coordinates p = element_a(t, stored, lane, i);
        put(a, (item * kA + i / per) * 32 + lane, t, i, x.a[p.row * stored + p.col]);
      }
      for (int i = 0; i < kB * per; ++i) {
        const Coordinates p = element_b(t, lane, i);
        put(b, (item * kB + i / per) * 32 + lane, tb, i, x.b[p.row * 8 + p.col]);
      }
      for (int i = 0; i < 4; ++i) {
        const Coordinates p = element_c(lane, i);
        const int value = x.c[p.row * 8 + p.col];
        c[(item * 4 + i) * 32 + lane] =
            integer ? static_cast<unsigned>(value) : encode(Element::kTf32, value);
      }
    }
    if (!sparse) continue;
    // The metadata figures: T(4 row + ...) by shape.
    for (int row = 0; row < 16; ++row) {
      unsigned long long bits = 0;
      for (int k = 0; k < stored; ++k) {
        const int column = x.columns[row * stored + k];
        if (bits_of(t) == 32)
          bits |= (column % 2 == 1 ? 0b1110ull : 0b0100ull) << (4 * k);
        else
          bits |= static_cast<unsigned long long>(column % 4) << (2 * k);
      }
      unsigned* quad = &e[item * 32 + row % 8 * 4];
      if (bits_of(t) == 8 && K == 32) {  // a pair of threads: row, row + 8
        quad[2 * selector + row / 8] = static_cast<unsigned>(bits);
      } else if (bits_of(t) == 8) {  // K 64: all four threads, columns 0-31 in the first pair
        quad[row / 8] = static_cast<unsigned>(bits);
        quad[2 + row / 8] = static_cast<unsigned>(bits >> 32);
      } else {
        const bool pair = K == (bits_of(t) == 16 ? 32 : 16);
        for (int part = 0; part < (pair ? 2 : 1); ++part) {
          unsigned& word = quad[pair ? 2 * selector + part : selector];
          const unsigned sixteen = static_cast<unsigned>(bits >> (16 * part)) & 0xffff;
          word = row < 8 ? (word & 0xffff0000u) | sixteen : (word & 0xffffu) | sixteen << 16;
        }
      }
    }
  }
  DeviceArray<unsigned> da(a), db(b), dc(c), de(e), dd(n * 4 * 32);
  run_mma<kA, kB, 4><<<static_cast<unsigned>(n), 32>>>(da, db, dc, sparse ? de.data() : nullptr, dd, body);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<unsigned> d = dd.host();
  for (size_t item = 0; item < n; ++item) {
    const Case& x = cases[item];
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const Coordinates p = element_c(lane, i);
        long long want = x.c[p.row * 8 + p.col];
        for (int k = 0; k < stored; ++k) {
          const int column = sparse ? x.columns[p.row * stored + k] : k;
          want += static_cast<long long>(x.a[p.row * stored + k]) * x.b[column * 8 + p.col];
        }
        if (saturate) want = std::clamp<long long>(want, INT32_MIN, INT32_MAX);
        const unsigned bits = d[(item * 4 + i) * 32 + lane];
        float f;
        std::memcpy(&f, &bits, 4);
        const long long got = integer ? static_cast<int>(bits) : static_cast<long long>(f);
        ASSERT_EQ(want, got) << "case " << item << ", row " << p.row << ", column " << p.col;
      }
    }
  }
}

// One-hot A against B of distinct values, then random small integers, which every format holds exactly.
std::vector<Case> make_cases(Element t, Element tb, int K, bool sparse) {
  std::mt19937 random(7);
  const int stored = sparse ? K / 2 : K;
  const auto columns = [&] {
    std::vector<int> list;
    for (int row = 0; row < 16 && sparse; ++row) {
      for (int k = 0; k < stored;) {
        if (bits_of(t) == 32) {
          list.push_back(2 * k + static_cast<int>(random() % 2));
          ++k;
          continue;
        }
        const int first = static_cast<int>(random() % 3),
                  second = first + 1 + static_cast<int>(random() % (3 - first));
        list.push_back(k / 2 * 4 + first);
        list.push_back(k / 2 * 4 + second);
        k += 2;
      }
    }
    return list;
  };
  std::vector<Case> cases;
  for (int hot = 0; hot < 16 * stored; ++hot) {
    Case x{Matrix(16 * stored), Matrix(K * 8), Matrix(16 * 8), columns()};
    x.a[hot] = 1;
    for (int i = 0; i < K * 8; ++i) x.b[i] = bits_of(t) == 8 ? i % 127 : i % 256;
    cases.push_back(x);
  }
  const auto draw = [&](Element type) {
    return type == Element::kU8 ? static_cast<int>(random() % 256) : static_cast<int>(random() % 15) - 7;
  };
  for (int round = 0; round < 8; ++round) {
    Case x{Matrix(16 * stored), Matrix(K * 8), Matrix(16 * 8), columns()};
    for (int& v : x.a) v = draw(t);
    for (int& v : x.b) v = draw(tb);
    for (int& v : x.c) v = static_cast<int>(random() % 2001) - 1000;
    cases.push_back(x);
  }
  return cases;
}
template <int kA, int kB, class Body>
void check_all(Body body, Element t, Element tb, int K, bool sparse = false, int selector = 0) {
  check<kA, kB>(body, t, tb, K, make_cases(t, tb, K, sparse), sparse, selector);
}

TEST(Mma, Bf16) {
  check_all<4, 2>(Bf16K16{}, Element::kBf16, Element::kBf16, 16);
  check_all<2, 1>(Bf16K8{}, Element::kBf16, Element::kBf16, 8);
}
TEST(Mma, F16) {
  check_all<4, 2>(F16K16{}, Element::kF16, Element::kF16, 16);
  check_all<2, 1>(F16K8{}, Element::kF16, Element::kF16, 8);
}
TEST(Mma, Tf32) {
  check_all<4, 2>(Tf32K8{}, Element::kTf32, Element::kTf32, 8);
  check_all<2, 1>(Tf32K4{}, Element::kTf32, Element::kTf32, 4);
}
TEST(Mma, Integers) {
  check_all<4, 2>(S8K32{}, Element::kS8, Element::kS8, 32);
  check_all<4, 2>(U8S8K32{}, Element::kU8, Element::kS8, 32);
  check_all<2, 1>(S8K16{}, Element::kS8, Element::kS8, 16);
  check_all<2, 1>(U8K16{}, Element::kU8, Element::kU8, 16);
}
TEST(Mma, IntegersSaturate) {
  Case x{Matrix(16 * 32, 127), Matrix(32 * 8, 127), Matrix(16 * 8, INT32_MAX - 5), {}};
  Case y{Matrix(16 * 32, 127), Matrix(32 * 8, -127), Matrix(16 * 8, INT32_MIN + 5), {}};
  check<4, 2>(S8K32Saturating{}, Element::kS8, Element::kS8, 32, {x, y}, false, 0, true);
}
TEST(MmaSparse, Bf16) {
  check_all<2, 2>(SparseBf16K16{}, Element::kBf16, Element::kBf16, 16, true, 3);
  check_all<4, 4>(SparseBf16K32{}, Element::kBf16, Element::kBf16, 32, true, 0);
}
TEST(MmaSparse, F16) { check_all<4, 4>(SparseF16K32{}, Element::kF16, Element::kF16, 32, true, 1); }
TEST(MmaSparse, Tf32) {
  check_all<2, 2>(SparseTf32K8{}, Element::kTf32, Element::kTf32, 8, true, 2);
  check_all<4, 4>(SparseTf32K16{}, Element::kTf32, Element::kTf32, 16, true, 1);
}
TEST(MmaSparse, Integers) {
  check_all<2, 2>(SparseS8K32{}, Element::kS8, Element::kS8, 32, true, 1);
  check_all<4, 4>(SparseS8K64{}, Element::kS8, Element::kS8, 64, true, 0);
}
// Metadata that the PTX ISA leaves undefined, and a twin that it defines; the report names row and lane.
template <int kA, int kB, class Body>
void expect_metadata_checked(Body body, unsigned bad, unsigned good, const char* text) {
  DeviceArray<unsigned> zeros(std::vector<unsigned>(4 * 32)), d(4 * 32);
  for (const bool planted : {true, false}) {
    std::vector<unsigned> metadata(32, good);
    if (planted) metadata[20] = bad;
    const DeviceArray<unsigned> e(metadata);
    const auto launch = [&] { run_mma<kA, kB, 4><<<1, 32>>>(zeros, zeros, zeros, e, d, body); };
    if (!planted) {
      expect_quiet(launch);
      continue;
    }
    const auto fault = run(launch);
    ASSERT_TRUE(fault.has_value());
    EXPECT_EQ(simgpu::FaultKind::kInvalidMetadata, fault->kind);
    for (const std::string piece :
         {text, "run_mma<", "at ", "mma_test.cu:", "block (0, 0, 0), thread (20, 0, 0)"})
      EXPECT_NE(std::string::npos, fault->text.find(piece)) << piece << " is not in: " << fault->text;
  }
}
TEST(MmaSparse, UndefinedMetadataIsReported) {
  expect_metadata_checked<4, 4>(SparseBf16K32{}, 0x44444441, 0x44444444,
                                "metadata of row 5 of A: elements 1 and 0 of four, which must ascend");
  expect_metadata_checked<4, 4>(SparseTf32K16AtZero{}, 0xe4e4e4e5, 0xe4e4e4e4,
                                "metadata 5 of row 5 of A: 4 and 14 are defined");
}

__global__ void multiply_f64(const double* a, const double* b, const double* c, double* d) {
  const int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
  double d0, d1;
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%4, %5};"
      : "=d"(d0), "=d"(d1)
      : "d"(a[group * 4 + thread]), "d"(b[thread * 8 + group]), "d"(c[group * 8 + 2 * thread]),
        "d"(c[group * 8 + 2 * thread + 1]));
  d[group * 8 + 2 * thread] = d0;
  d[group * 8 + 2 * thread + 1] = d1;
}
TEST(Mma, F64) {
  std::mt19937 random(3);
  std::vector<double> a(32), b(32), c(64);
  for (auto* m : {&a, &b, &c}) {
    for (double& x : *m) x = static_cast<int>(random() % 2001) - 1000;
  }
  DeviceArray<double> d(64);
  multiply_f64<<<1, 32>>>(DeviceArray<double>(a), DeviceArray<double>(b), DeviceArray<double>(c), d);
  CUDA_OK(cudaDeviceSynchronize());
  const std::vector<double> got = d.host();
  for (int m = 0; m < 8; ++m) {
    for (int n = 0; n < 8; ++n) {
      double want = c[m * 8 + n];
      for (int k = 0; k < 4; ++k) want += a[m * 4 + k] * b[k * 8 + n];
      ASSERT_EQ(want, got[m * 8 + n]);
    }
  }
}

template <bool kTransposed>
__global__ void load_matrices(unsigned* out) {
  __shared__ alignas(16) unsigned short tiles[4][8][8];  // element: 64 matrix + 8 row + column
  for (unsigned i = threadIdx.x; i < 256; i += 32) (&tiles[0][0][0])[i] = static_cast<unsigned short>(i);
  __syncwarp();
  const unsigned at =
      static_cast<unsigned>(__cvta_generic_to_shared(&tiles[threadIdx.x / 8][threadIdx.x % 8][0]));
  unsigned r0, r1, r2, r3;
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
                 : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
                 : "r"(at));
  const unsigned r[] = {r0, r1, r2, r3};
  for (int m = 0; m < 4; ++m) out[m * 32 + threadIdx.x] = r[m];
}
// "Each thread of the warp gets two consecutive elements of a row": thread T of the figure row T / 4.
TEST(Ldmatrix, Fragments) {
  DeviceArray<unsigned> plain(128), transposed(128);
  load_matrices<false><<<1, 32>>>(plain);
  load_matrices<true><<<1, 32>>>(transposed);
  CUDA_OK(cudaDeviceSynchronize());
  const auto p = plain.host(), t = transposed.host();
  for (unsigned m = 0; m < 4; ++m) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned row = lane / 4, col = lane % 4 * 2, base = 64 * m;
      EXPECT_EQ((base + 8 * row + col) | (base + 8 * row + col + 1) << 16, p[m * 32 + lane]);
      EXPECT_EQ((base + 8 * col + row) | (base + 8 * (col + 1) + row) << 16, t[m * 32 + lane]);
    }
  }
}

}  // namespace
