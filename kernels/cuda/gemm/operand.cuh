#pragma once

// One operand on its way: global memory, a tile in shared memory, fragments of mma.
//
// A and B are treated alike. Both are matrices of `rows` (M of A, N of B) by depth (K), and a fragment covers
// 16 rows by 32 bytes of depth, in four registers. Register index(h, d) holds rows 8h to 8h + 7, bytes 16d to
// 16d + 15 of depth: for A (0,0) (1,0) (0,1) (1,1), as mma takes them; for B (0,0) (0,1) (1,0) (1,1), two
// operands of mma, each in neighbouring registers as the instruction wants them.
//
// The tile in shared memory consists of the lines of global memory, which run along depth or along rows, cut
// into chunks of 16 bytes. Chunk c of line l is stored at place c ^ swizzle(l) of the line: eight chunks next
// to each other in one column of lines, as ldmatrix reads them, then lie in different banks, and so do eight
// neighbours in a line, as cp.async writes them.

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/gemm/arguments.h"

namespace ergon::kernels::cuda::gemm_detail {

using namespace device;

template <class T, bool kIsA, int kRows, int kStepBytes, bool kAlongDepth, int kWarpRows, int kThreads>
struct Operand {
  static constexpr int kDepth = kStepBytes / sizeof(T);
  static constexpr int kChunk = 16 / sizeof(T);  // elements
  static constexpr int kLines = kAlongDepth ? kRows : kDepth;
  static constexpr int kLineBytes = (kAlongDepth ? kDepth : kRows) * sizeof(T);
  static constexpr int kBytes = kLines * kLineBytes;
  static constexpr int kChunksPerLine = kLineBytes / 16;
  static constexpr int kLinesAtATime = kThreads / kChunksPerLine;
  static constexpr int kCopies = kLines / kLinesAtATime;  // by each thread
  static constexpr int kFragments = kWarpRows / 16;

  // 32-bit elements in lines along rows: ldmatrix cannot transpose them. Each thread loads vectors of 4 rows
  // instead, and mma's row g of fragment i's half h stands for row g * kWarpRows / 8 + 2i + h.
  static constexpr bool kInterleaved = !kAlongDepth && sizeof(T) == 4;
  static constexpr int kInterleave = kWarpRows / 8;

  static_assert(kLines % kLinesAtATime == 0 && kThreads % kChunksPerLine == 0);
  static_assert(kWarpRows == 64 || kWarpRows == 32);

  __device__ static constexpr int swizzle(int line) {
    if constexpr (kInterleaved) {
      // A quarter of a warp reads lines 0..3 at chunks c and c + kInterleave / 4.
      return kWarpRows == 64 ? (line & 1) | (line & 2) << 1 : (line & 3) << 1;
    } else if constexpr (kLineBytes == 64) {
      return line >> 1 & 3;  // two lines fill the banks
    } else {
      return line & 7;
    }
  }

  __device__ static constexpr int index(int h, int d) { return kIsA ? h + 2 * d : 2 * h + d; }

  // Row of the warp's part that mma's row g (0 to 7) of half h of fragment i stands for.
  __device__ static constexpr int row_of(int i, int h, int g) {
    return kInterleaved ? g * kInterleave + 2 * i + h : 16 * i + 8 * h + g;
  }

  // ---- global to shared memory: this thread's chunks are at one place of every kLinesAtATime-th line ----
  class Copy {
   public:
    __device__ Copy()
        : line_(static_cast<int>(threadIdx.x) / kChunksPerLine),
          chunk_(static_cast<int>(threadIdx.x) % kChunksPerLine),
          to_(line_ * kLineBytes + (chunk_ ^ swizzle(line_)) * 16) {
      static_assert(kInterleaved ? kLinesAtATime % 4 == 0 : kLinesAtATime % 8 == 0, "one swizzle a thread");
    }

    // To begin at (row, depth) of the matrix at `matrix`, which has `rows` and `depths`.
    __device__ void start(const Source& source, const T* matrix, int row, int depth, int rows, int depths) {
      const int line = (kAlongDepth ? row : depth) + line_;
      const int element = (kAlongDepth ? depth : row) + chunk_ * kChunk;
      from_ = reinterpret_cast<const char*>(matrix + line * source.line_stride + element * source.unit);
      line_step_ = static_cast<std::uint32_t>(kLinesAtATime * source.line_stride * sizeof(T));
      depth_step_ = kDepth * (kAlongDepth ? source.unit : source.line_stride) * sizeof(T);
      lines_left_ = (kAlongDepth ? rows : depths) - line;
      elements_left_ = (kAlongDepth ? depths : rows) - element;
    }

    // A step that lies within the matrix, of an aligned source.
    __device__ __forceinline__ void whole_step(std::uint32_t stage) {
#pragma unroll
      for (int c = 0; c < kCopies; ++c) copy_async<16>(address_to(stage, c), address_from(c));
    }

    // Any step: zero beyond the matrix.
    __device__ __forceinline__ void step(const Source& source, std::uint32_t stage) {
      const int elements = min(max(elements_left_, 0), kChunk);
      if (source.aligned) {
#pragma unroll
        for (int c = 0; c < kCopies; ++c) {
          const int valid = c * kLinesAtATime < lines_left_ ? elements : 0;
          copy_async<16>(address_to(stage, c), address_from(c), valid * static_cast<int>(sizeof(T)));
        }
        return;
      }
#pragma unroll 1
      for (int c = 0; c < kCopies; ++c) {
        const int valid = c * kLinesAtATime < lines_left_ ? elements : 0;
        const T* from = reinterpret_cast<const T*>(address_from(c));
        alignas(16) T values[kChunk];
#pragma unroll
        for (int e = 0; e < kChunk; ++e) values[e] = e < valid ? from[e * source.unit] : T(0.0f);
        uint4 bits;
        memcpy(&bits, values, 16);
        store_shared(address_to(stage, c), bits);
      }
    }

    __device__ __forceinline__ void advance() {
      from_ += depth_step_;
      (kAlongDepth ? elements_left_ : lines_left_) -= kDepth;
    }

   private:
    __device__ __forceinline__ std::uint32_t address_to(std::uint32_t stage, int c) const {
      return stage + to_ + c * (kLinesAtATime * kLineBytes);
    }
    __device__ __forceinline__ const char* address_from(int c) const {
      return from_ + static_cast<std::uint64_t>(line_step_) * c;
    }

    int line_, chunk_, to_;
    const char* from_;
    std::uint32_t line_step_;
    std::int64_t depth_step_;
    int lines_left_, elements_left_;  // from this thread's first chunk on
  };

  // ---- shared memory to fragments of the warp's rows from `row` on ----
  class Reader {
   public:
    __device__ explicit Reader(int row) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const int matrix = lane / 8;  // of ldmatrix, for register index(h, d)
      const int h = kIsA ? matrix % 2 : matrix / 2, d = kIsA ? matrix / 2 : matrix % 2;
      if constexpr (kAlongDepth) {
        const int line = row + 8 * h + lane % 8;
        from_ = line * kLineBytes + (d ^ swizzle(line)) * 16;
      } else if constexpr (!kInterleaved) {
        const int line = 8 * d + lane % 8;
        from_ = line * kLineBytes + ((row / kChunk + h) ^ swizzle(line)) * 16;
      } else {
        const int line = lane % 4;
        from_ = line * kLineBytes + ((row + lane / 4 * kInterleave) / kChunk ^ swizzle(line)) * 16;
      }
    }

    // The fragments at depth 32 * k bytes of the step in `stage`, a multiple of 128.
    __device__ __forceinline__ void load(std::uint32_t (&r)[kFragments][4], std::uint32_t stage,
                                         int k) const {
      const std::uint32_t from = stage + from_;
      if constexpr (kAlongDepth) {
#pragma unroll
        for (int i = 0; i < kFragments; ++i) load_matrices(r[i], (from ^ (32 * k)) + 16 * i * kLineBytes);
      } else if constexpr (!kInterleaved) {
#pragma unroll
        for (int i = 0; i < kFragments; ++i) {
          load_matrices_transposed(r[i], (from ^ (32 * i)) + 16 * k * kLineBytes);
        }
      } else {
#pragma unroll
        for (int d = 0; d < 2; ++d) {
#pragma unroll
          for (int i = 0; i < kFragments; i += 2) {
            const uint4 rows = load_shared((from ^ (8 * i)) + (8 * k + 4 * d) * kLineBytes);
            r[i][index(0, d)] = rows.x;
            r[i][index(1, d)] = rows.y;
            r[i + 1][index(0, d)] = rows.z;
            r[i + 1][index(1, d)] = rows.w;
          }
        }
      }
    }

   private:
    std::uint32_t from_;
  };
};

}  // namespace ergon::kernels::cuda::gemm_detail
