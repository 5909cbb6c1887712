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
  static constexpr int kBetweenCopies = kLinesAtATime * kLineBytes;
  static constexpr int kFragments = kWarpRows / 16;

  // 32-bit elements in lines along rows, which ldmatrix cannot transpose, are loaded as such: for B one by
  // one, for A in pairs of rows, so that mma's rows g and g + 8 stand for neighbours.
  static constexpr bool kWords = !kAlongDepth && sizeof(T) == 4;

  static_assert(kLines % kLinesAtATime == 0 && kThreads % kChunksPerLine == 0);
  static_assert(kWarpRows == 64 || kWarpRows == 32);

  __device__ static constexpr int swizzle(int line) {
    if constexpr (kWords) {
      return (line & 3) << 1;  // a warp reads two chunks of four lines, or half a warp four chunks
    } else if constexpr (kLineBytes == 64) {
      return line >> 1 & 3;  // two lines fill the banks
    } else {
      return line & 7;
    }
  }

  __device__ static constexpr int index(int h, int d) { return kIsA ? h + 2 * d : 2 * h + d; }

  // Row of the warp's part that mma's row g (0 to 7) of half h of fragment i stands for.
  __device__ static constexpr int row_of(int i, int h, int g) {
    return 16 * i + (kWords && kIsA ? 2 * g + h : 8 * h + g);
  }

  // ---- global to shared memory: this thread's chunks are at one place of every kLinesAtATime-th line ----
  class Copy {
   public:
    __device__ Copy()
        : line_(static_cast<int>(threadIdx.x) / kChunksPerLine),
          chunk_(static_cast<int>(threadIdx.x) % kChunksPerLine),
          to_(line_ * kLineBytes + (chunk_ ^ swizzle(line_)) * 16) {
      static_assert(kLinesAtATime % (kWords ? 4 : 8) == 0, "one swizzle a thread");
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

    // The next step into `stage`: it lies within the matrix, and the source moves 16 bytes at a time.
    __device__ __forceinline__ void whole_step(std::uint32_t stage) {
      unrolled<kCopies>([&](auto c) { copy_async<16, c * kBetweenCopies>(stage + to_, address_from(c)); });
      from_ += depth_step_;
    }

    // The next step, number `step`, from a source that moves 16 bytes at a time: zero beyond the matrix.
    __device__ __forceinline__ void aligned_step(std::uint32_t stage, int step) {
      unrolled<kCopies>([&](auto c) {
        copy_async<16, c * kBetweenCopies>(stage + to_, address_from(c),
                                           elements_of(c, step) * static_cast<int>(sizeof(T)));
      });
      from_ += depth_step_;
    }

    // The same from any source.
    __device__ __forceinline__ void step(const Source& source, std::uint32_t stage, int step) {
      if (source.bytes_at_a_time == 16) return aligned_step(stage, step);
#pragma unroll 1
      for (int c = 0; c < kCopies; ++c) {
        copy_chunk(source, stage + to_ + c * kBetweenCopies, reinterpret_cast<const T*>(address_from(c)),
                   elements_of(c, step));
      }
      __syncwarp();  // lanes took different ways, and mma needs them together
      from_ += depth_step_;
    }

   private:
    // Of chunk c of step `step` that are there.
    __device__ __forceinline__ int elements_of(int c, int step) const {
      const int lines = lines_left_ - (kAlongDepth ? 0 : step * kDepth);
      const int elements = min(max(elements_left_ - (kAlongDepth ? step * kDepth : 0), 0), kChunk);
      return c * kLinesAtATime < lines ? elements : 0;
    }

    // A chunk in words of 4 bytes, or of elements that lie apart or at odd addresses.
    __device__ __forceinline__ void copy_chunk(const Source& source, std::uint32_t to, const T* from,
                                               int valid) {
      constexpr int kPerWord = 4 / sizeof(T);
      if (source.bytes_at_a_time == 4) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int bytes = min(max(valid - w * kPerWord, 0), kPerWord) * static_cast<int>(sizeof(T));
          copy_async<4>(to + 4 * w, from + w * kPerWord * source.unit, bytes);
        }
      } else {
        T values[kChunk];
#pragma unroll
        for (int e = 0; e < kChunk; ++e) values[e] = e < valid ? from[e * source.unit] : T(0.0f);
        uint4 bits;
        memcpy(&bits, values, 16);
        store_shared(to, bits);
      }
    }

    // One instruction, which the compiler does not find by itself.
    __device__ __forceinline__ const char* address_from(int c) const {
      if (c == 0) return from_;
      const char* result;
      asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(result) : "r"(line_step_), "r"(c), "l"(from_));
      return result;
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
    __device__ Reader(int row, std::uint32_t stage) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const int matrix = lane / 8;  // of ldmatrix, for register index(h, d)
      const int h = kIsA ? matrix % 2 : matrix / 2, d = kIsA ? matrix / 2 : matrix % 2;
      std::uint32_t from = stage;
      if constexpr (kAlongDepth) {
        const int line = row + 8 * h + lane % 8;
        from += line * kLineBytes + (d ^ swizzle(line)) * 16;
      } else if constexpr (!kWords) {
        const int line = 8 * d + lane % 8;
        from += line * kLineBytes + ((row / kChunk + h) ^ swizzle(line)) * 16;
      } else {
        const int line = lane % 4, element = row + lane / 4 * (kIsA ? 2 : 1);
        from += line * kLineBytes + (element / kChunk ^ swizzle(line)) * 16 + element % kChunk * 4;
      }
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) from_[i] = from ^ (i * (kWords ? 64 : 32));
    }

    // The fragments at depth 32 * kPart bytes of the stage that is `stage` bytes after the first.
    template <int kPart>
    __device__ __forceinline__ void load(std::uint32_t (&r)[kFragments][4], std::uint32_t stage) const {
      unrolled<kFragments>([&](auto i) {
        if constexpr (kAlongDepth) {
          load_matrices<16 * i * kLineBytes>(r[i], from_[kPart] + stage);
        } else if constexpr (!kWords) {
          load_matrices_transposed<16 * kPart * kLineBytes>(r[i], from_[i] + stage);
        } else {
          unrolled<2>([&](auto d) {
            constexpr int kOffset = (8 * kPart + 4 * d) * kLineBytes;
            if constexpr (kIsA) {
              load_shared<kOffset>(r[i][index(0, d)], r[i][index(1, d)], from_[i] + stage);
            } else {
              load_shared<kOffset>(r[i][index(0, d)], from_[i] + stage);
              load_shared<kOffset>(r[i][index(1, d)], (from_[i] ^ 32) + stage);
            }
          });
        }
      });
    }

   private:
    // Along depth one for each part, else one for each fragment; the exclusive or of swizzles keeps them from
    // being a constant apart. Stages begin at multiples of 128 bytes, which these do not touch.
    static constexpr int kPlaces = kAlongDepth ? kStepBytes / 32 : kFragments;
    std::uint32_t from_[kPlaces];
  };
};

}  // namespace ergon::kernels::cuda::gemm_detail
