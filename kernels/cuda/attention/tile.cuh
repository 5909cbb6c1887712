#pragma once

// Rows of one head in shared memory, and the fragments of mma that are made of them; 16-bit elements.

#include "kernels/cuda/common/mma.cuh"

namespace ergon::kernels::cuda::attention_detail {

using namespace device;

template <class T>
inline constexpr DType kDTypeOf = std::is_same_v<T, bf16> ? DType::bf16 : DType::f16;

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>) {
    mma_bf16(d, a, b0, b1);
  } else {
    mma_f16(d, a, b0, b1);
  }
}

// Two neighbours of a row, the first in the low half.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t bits;
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &both, 4);
  } else {
    const __half2 both = __floats2half2_rn(low, high);
    memcpy(&bits, &both, 4);
  }
  return bits;
}

// The two neighbouring 16x8 results d0 and d1 as one 16x16 operand of the next product.
template <class T>
__device__ __forceinline__ void to_operand(std::uint32_t (&a)[4], const float (&d0)[4],
                                           const float (&d1)[4]) {
  a[0] = pack<T>(d0[0], d0[1]);
  a[1] = pack<T>(d0[2], d0[3]);
  a[2] = pack<T>(d1[0], d1[1]);
  a[3] = pack<T>(d1[2], d1[3]);
}

// kLines rows ("lines") of kDim elements. Chunk c (16 bytes) of line l lies at place c ^ swizzle(l) of the
// line: eight lines of one chunk, as ldmatrix reads them, are then in different banks, and so are eight
// neighbouring chunks of a line, as cp.async writes them. A tile begins at a multiple of 128 bytes.
template <int kLines, int kDim>
struct Tile {
  static constexpr int kRows = kLines;
  static constexpr int kLineBytes = kDim * 2;
  static constexpr int kChunks = kDim / 8;
  static constexpr int kBytes = kLines * kLineBytes;
  static constexpr int kSwizzled = kChunks < 8 ? kChunks : 8;  // neighbouring chunks that change places
  static_assert(kLines % 16 == 0 && (kChunks & (kChunks - 1)) == 0);

  // 8 / kChunks lines fill the banks, where lines are shorter.
  __device__ static constexpr int swizzle(int line) { return line * kSwizzled / 8 & (kSwizzled - 1); }
  __device__ static constexpr int offset(int line, int chunk) {
    return line * kLineBytes + (chunk ^ swizzle(line)) * 16;
  }
};

// What one thread copies of tile after tile of a head's rows: one chunk of every kLinesAtATime-th line.
template <class Tile, int kThreads>
class TileCopy {
 public:
  static constexpr int kLinesAtATime = kThreads / Tile::kChunks;
  static constexpr int kCopies = Tile::kRows / kLinesAtATime;
  static_assert(kThreads % Tile::kChunks == 0 && Tile::kRows % kLinesAtATime == 0);

  // From the row at `rows` on; rows are `stride` elements apart.
  template <class T>
  __device__ __forceinline__ TileCopy(const T* rows, std::int64_t stride)
      : from_(reinterpret_cast<const char*>(rows + line() * stride + chunk() * 8)) {}

  // The next tile to `tile`; zero before row `first` and from row `end` on, and beyond head_dim.
  __device__ __forceinline__ void next(std::uint32_t tile, std::int64_t stride, int first, int end,
                                       int head_dim) {
    const int lines = chunk() * 8 < head_dim ? end - line() : 0;
    unrolled<kCopies>([&](auto c) {
      const char* from = from_;
      if constexpr (c > 0) {
        asm("mad.wide.u32 %0, %1, %2, %3;"
            : "=l"(from)
            : "r"(static_cast<std::uint32_t>(stride)), "n"(2 * c * kLinesAtATime), "l"(from_));
      }
      const bool valid = c * kLinesAtATime < lines && (first <= 0 || c * kLinesAtATime + line() >= first);
      copy_async<16>(tile + to(c), from, valid ? 16 : 0);
    });
    from_ += stride * (2 * Tile::kRows);
  }

  // Where this thread's copy c goes.
  __device__ __forceinline__ static std::uint32_t to(int c) {
    return Tile::offset(line() + c * kLinesAtATime, chunk());
  }
  __device__ __forceinline__ static int line() { return static_cast<int>(threadIdx.x) / Tile::kChunks; }
  __device__ __forceinline__ static int chunk() { return static_cast<int>(threadIdx.x) % Tile::kChunks; }

 private:
  const char* from_;
};

// The rows that row_at(first), ..., row_at(end - 1) point to, into a tile; zero in its other lines and beyond
// head_dim.
template <class Tile, int kThreads, class RowAt>
__device__ __forceinline__ void copy_rows(std::uint32_t tile, int first, int end, int head_dim,
                                          RowAt&& row_at) {
  using Copy = TileCopy<Tile, kThreads>;
#pragma unroll 1
  for (int c = 0; c < Copy::kCopies; ++c) {
    const int line = Copy::line() + c * Copy::kLinesAtATime;
    const bool valid = line >= first && line < end && Copy::chunk() * 8 < head_dim;
    copy_async<16>(tile + Copy::to(c), row_at(valid ? line : max(first, 0)) + (valid ? Copy::chunk() * 8 : 0),
                   valid ? 16 : 0);
  }
}

// Loads squares of 16 lines by 16 elements as operands of mma. Matrix m of ldmatrix is chunk m / 2 of lines
// 8 (m % 2) ... (kLinesFirst), or chunk m % 2 of lines 8 (m / 2) ...:
//              a (16 rows, 16 k)                    b (16 k, two times 8 columns)
//   rows       kLinesFirst, a line is a row         not kLinesFirst, a line is a column
//   transposed not kLinesFirst, a line is a k       kLinesFirst, a line is a k
template <class Tile, bool kLinesFirst>
class Reader {
 public:
  // Of the tile at `tile`, lines from `line` (a multiple of 16) and chunks from `chunk` on (a multiple of as
  // many as are read).
  __device__ __forceinline__ Reader(std::uint32_t tile, int line = 0, int chunk = 0) {
    const int lane = static_cast<int>(threadIdx.x) % 32, m = lane / 8;
    at_ = tile
          + Tile::offset(line + 8 * (kLinesFirst ? m % 2 : m / 2) + lane % 8,
                         chunk + (kLinesFirst ? m / 2 : m % 2));
  }
  __device__ __forceinline__ Reader after(std::uint32_t bytes) const {
    Reader reader = *this;
    reader.at_ += bytes;
    return reader;
  }
  // Lines 16 * kLine16 on, elements 16 * kColumn16 on; of the tile that begins kBytes later.
  template <int kLine16, int kColumn16, int kBytes = 0>
  __device__ __forceinline__ void load(std::uint32_t (&r)[4]) const {
    load_matrices<place<kLine16, kColumn16>() + kBytes>(r, at_ ^ (kColumn16 % kPairs * 32));
  }
  // Lines 0, 16, ...
  template <int kColumn16, int kCount>
  __device__ __forceinline__ void load(std::uint32_t (&r)[kCount][4]) const {
    unrolled<kCount>([&](auto i) { load<i, kColumn16>(r[i]); });
  }
  template <int kLine16, int kColumn16, int kBytes = 0>
  __device__ __forceinline__ void load_transposed(std::uint32_t (&r)[4]) const {
    load_matrices_transposed<place<kLine16, kColumn16>() + kBytes>(r, at_ ^ (kColumn16 % kPairs * 32));
  }

 private:
  static constexpr int kPairs = Tile::kSwizzled / 2;
  template <int kLine16, int kColumn16>
  static constexpr int place() {
    return 16 * kLine16 * Tile::kLineBytes + kColumn16 / kPairs * kPairs * 32;
  }
  std::uint32_t at_;
};

// Results (16 rows, 8 kCount) of a warp, as T to lines `line` to line + 15 of a tile, from chunk `chunk` on.
template <class T, class Tile, int kCount>
__device__ __forceinline__ void store_results(unsigned char* tile, int line, const float (&d)[kCount][4],
                                              int chunk = 0) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<std::uint32_t*>(tile + Tile::offset(line + 8 * half + lane / 4, chunk + n)
                                        + lane % 4 * 4) = pack<T>(d[n][2 * half], d[n][2 * half + 1]);
    }
  }
}

// Lines `line` to line + kCount - 1, those before `lines`, to global memory by one warp; row_at(l) points to
// line l's row.
template <class Tile, int kCount, class RowAt>
__device__ __forceinline__ void write_rows(const unsigned char* tile, int line, int lines, int head_dim,
                                           RowAt&& row_at) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int i = lane; i < kCount * Tile::kChunks; i += 32) {
    const int l = line + i / Tile::kChunks, chunk = i % Tile::kChunks;
    if (l < lines && chunk * 8 < head_dim) {
      *reinterpret_cast<uint4*>(row_at(l) + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile + Tile::offset(l, chunk));
    }
  }
}

}  // namespace ergon::kernels::cuda::attention_detail
