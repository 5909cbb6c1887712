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
//
// ldmatrix cannot transpose the 32-bit elements of lines along rows. They are loaded as pairs of neighbours
// in a line, which mma takes as rows g of two halves (row_of). For A they belong into neighbouring registers,
// (0,d) and (1,d), as the load wants it. For B they do not: either the arithmetic computes new registers from
// a fragment anyway (kAnyRegister), or lines d and d + 4 are interleaved. They then share a line of twice the
// length, word by word, and a vector of four words has two neighbours of both, for (0,0) (0,1) (1,0) (1,1);
// but copies have to be of 4 bytes.

#include <algorithm>

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/gemm/arguments.h"

namespace ergon::kernels::cuda::gemm_detail {

using namespace device;

// kAnyRegister: whether the arithmetic takes a fragment's registers one by one, wherever they are.
template <class T, bool kIsA, int kRows, int kStepBytes, bool kAlongDepth, int kWarpRows, int kThreads,
          bool kAnyRegister>
struct Operand {
  static constexpr int kDepth = kStepBytes / sizeof(T);
  static constexpr int kChunk = 16 / sizeof(T);  // elements
  static constexpr int kLines = kAlongDepth ? kRows : kDepth;
  static constexpr int kLineBytes = (kAlongDepth ? kDepth : kRows) * sizeof(T);
  static constexpr int kBytes = kLines * kLineBytes;
  static constexpr int kFragments = kWarpRows / 16;

  static constexpr bool kWords = !kAlongDepth && sizeof(T) == 4;
  static constexpr bool kInterleaved = kWords && !kAnyRegister && !kIsA;

  // Neighbouring threads copy neighbours in a line: of long ones 128 bytes, or more where there are more
  // threads than that many lines have; interleaved, 64 of either line. A thread goes on in its lines, at
  // constant distances, and then in others.
  static constexpr int kCopyBytes = kInterleaved ? 4 : 16;
  static constexpr int kCopiesPerLine = kLineBytes / kCopyBytes;
  static constexpr int kNeighbours =
      kInterleaved ? 16 : std::min(kCopiesPerLine, std::max(8, kThreads / kLines));
  static constexpr int kLinesAtATime = kThreads / kNeighbours;
  static constexpr int kCopiesInLine = kCopiesPerLine / kNeighbours;  // of a thread
  static constexpr int kLineCopies = kLines / kLinesAtATime;

  static_assert(kLines % kLinesAtATime == 0 && kCopiesPerLine % kNeighbours == 0);
  static_assert(kWarpRows == 64 || kWarpRows == 32);

  __device__ static constexpr int swizzle(int line) {
    if constexpr (kWords) {
      return (line & 3) << 1;  // part of a warp reads two chunks of four lines at a time
    } else if constexpr (kLineBytes == 64) {
      return line >> 1 & 3;  // two lines fill the banks
    } else {
      return line & 7;
    }
  }

  __device__ static constexpr int index(int h, int d) { return kIsA ? h + 2 * d : 2 * h + d; }

  // Row of the warp's part that mma's row g (0 to 7) of half h of fragment i stands for.
  __device__ static constexpr int row_of(int i, int h, int g) {
    return 16 * i + (kWords ? 2 * g + h : 8 * h + g);
  }

  // Where in a K-step this thread's copies are.
  struct Places {
    int line, element, offset;  // of the first: in global memory, and in the tile

    __device__ explicit Places(int thread = static_cast<int>(threadIdx.x)) {
      if constexpr (kInterleaved) {
        const int pair = thread / 32, d = thread / 16 % 2;
        line = pair / 4 * 8 + pair % 4 + 4 * d;
        element = thread % 16;
        offset = pair * 2 * kLineBytes + (element / 2 ^ swizzle(pair)) * 16 + element % 2 * 8 + d * 4;
      } else {
        const int chunk = thread % kNeighbours;
        line = thread / kNeighbours;
        element = chunk * kChunk;
        offset = line * kLineBytes + (chunk ^ swizzle(line)) * 16;
      }
      static_assert(kLinesAtATime % 8 == 0 || (kWords && kLinesAtATime % 4 == 0), "one swizzle a thread");
      static_assert(kCopiesInLine == 1 || kNeighbours % 8 == 0, "which the next copy in the line keeps");
    }

    // f(l, c, distance) for each: l * kLinesAtATime lines and c * kNeighbours copies after the first one,
    // `distance` bytes in the tile; all are constants.
    template <class F>
    __device__ __forceinline__ static void for_each(F&& f) {
      unrolled<kLineCopies>([&](auto l) {
        unrolled<kCopiesInLine>([&](auto c) { f(l, c, std::integral_constant<int, distance(l, c)>{}); });
      });
    }
    __device__ static constexpr int distance(int l, int c) {
      return l * kLinesAtATime * kLineBytes + c * kNeighbours * kCopyBytes * (kInterleaved ? 2 : 1);
    }
  };

  // ---- global to shared memory ----
  class Copy {
   public:
    // To begin at (row, depth) of the matrix at `matrix`, which has `rows` and `depths`.
    __device__ void start(const Source& source, const T* matrix, int row, int depth, int rows, int depths) {
      const Places places(computed_anew(static_cast<int>(threadIdx.x)));
      const int line = (kAlongDepth ? row : depth) + places.line;
      const int element = (kAlongDepth ? depth : row) + places.element;
      from_ = reinterpret_cast<const char*>(matrix + line * source.line_stride + element * source.unit);
      line_step_ = static_cast<std::uint32_t>(kLinesAtATime * source.line_stride * sizeof(T));
      depth_step_ = kDepth * (kAlongDepth ? source.unit : source.line_stride) * sizeof(T);
      lines_left_ = (kAlongDepth ? rows : depths) - line;
      elements_left_ = (kAlongDepth ? depths : rows) - element;
    }

    // The next step into `stage`: it lies within the matrix, and the source moves 16 bytes at a time.
    __device__ __forceinline__ void whole_step(std::uint32_t stage) {
      const char* line = nullptr;
      Places::for_each([&](auto l, auto c, auto distance) {
        if (c == 0) line = address_of(l);
        copy_async<kCopyBytes, distance, c * kNeighbours * kCopyBytes>(stage + to_, line);
      });
      from_ += kAlongDepth ? kStepBytes : depth_step_;
    }

    // The next step, number `step`, from a source that moves 16 bytes at a time: zero beyond the matrix.
    __device__ __forceinline__ void aligned_step(std::uint32_t stage, int step) {
      Places::for_each([&](auto l, auto c, auto distance) {
        copy_async<kCopyBytes, distance>(stage + to_, address_of(l) + c * kNeighbours * kCopyBytes,
                                         elements_of(l, c, step) * static_cast<int>(sizeof(T)));
      });
      from_ += depth_step_;
    }

    // The same from any source.
    __device__ __forceinline__ void step(const Source& source, std::uint32_t stage, int step) {
      if (source.bytes_at_a_time == 16) return aligned_step(stage, step);
#pragma unroll 1
      for (int l = 0; l < kLineCopies; ++l) {
#pragma unroll 1
        for (int c = 0; c < kCopiesInLine; ++c) {
          const T* from =
              reinterpret_cast<const T*>(address_of(l)) + c * kNeighbours * kElements * source.unit;
          copy_elements(source, stage + to_ + Places::distance(l, c), from, elements_of(l, c, step));
        }
      }
      __syncwarp();  // lanes took different ways, and mma needs them together
      from_ += depth_step_;
    }

   private:
    static constexpr int kElements = kCopyBytes / sizeof(T);

    // Of copy (l, c) of step `step` that are there.
    __device__ __forceinline__ int elements_of(int l, int c, int step) const {
      const int lines = lines_left_ - (kAlongDepth ? 0 : step * kDepth);
      const int elements = elements_left_ - (kAlongDepth ? step * kDepth : 0) - c * kNeighbours * kElements;
      return l * kLinesAtATime < lines ? min(max(elements, 0), kElements) : 0;
    }

    // In words of 4 bytes, or elements that lie apart or at odd addresses.
    __device__ __forceinline__ void copy_elements(const Source& source, std::uint32_t to, const T* from,
                                                  int valid) {
      constexpr int kPerWord = 4 / sizeof(T);
      if (source.bytes_at_a_time == 4) {
#pragma unroll
        for (int w = 0; w < kCopyBytes / 4; ++w) {
          const int bytes = min(max(valid - w * kPerWord, 0), kPerWord) * static_cast<int>(sizeof(T));
          copy_async<4>(to + 4 * w, from + w * kPerWord * source.unit, bytes);
        }
      } else if constexpr (sizeof(T) < 4) {
        T values[kElements];
#pragma unroll
        for (int e = 0; e < kElements; ++e) values[e] = e < valid ? from[e * source.unit] : T(0.0f);
        uint4 bits;
        memcpy(&bits, values, 16);
        store_shared(to, bits);
      }
    }

    // The first copy of a thread's line. One instruction, which the compiler does not find by itself.
    __device__ __forceinline__ const char* address_of(int l) const {
      if (l == 0) return from_;
      const char* result;
      asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(result) : "r"(line_step_), "r"(l), "l"(from_));
      return result;
    }

    const int to_ = Places().offset;
    const char* from_;
    std::uint32_t line_step_;
    std::int64_t depth_step_;
    int lines_left_, elements_left_;  // from this thread's first copy on
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
        const int line = lane % 4, words = kInterleaved ? 4 : 2;           // of a vector
        const int word = row * (kInterleaved ? 2 : 1) + lane / 4 * words;  // of a line in the tile
        from += line * kLineBytes * (kInterleaved ? 2 : 1) + (word / 4 ^ swizzle(line)) * 16 + word % 4 * 4;
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
        } else if constexpr (kInterleaved) {
          load_shared<8 * kPart * kLineBytes + i * 128>(r[i][0], r[i][1], r[i][2], r[i][3], from_[0] + stage);
        } else {
          unrolled<2>([&](auto d) {
            constexpr int kOffset = (8 * kPart + 4 * d) * kLineBytes + i / 2 * 128;
            load_shared<kOffset>(r[i][index(0, d)], r[i][index(1, d)], from_[i % 2] + stage);
          });
        }
      });
    }

   private:
    // Along depth one for each part, else for each fragment within 128 bytes; the exclusive or of swizzles
    // keeps them from being a constant apart. Stages begin at multiples of 128 bytes, which these do not
    // touch.
    static constexpr int kPlaces = kAlongDepth    ? kStepBytes / 32
                                   : !kWords      ? kFragments
                                   : kInterleaved ? 1
                                                  : 2;
    std::uint32_t from_[kPlaces];
  };
};

}  // namespace ergon::kernels::cuda::gemm_detail
