#pragma once
// How the lanes of a warp hold the matrices of mma, mma.sp and ldmatrix, as in the PTX ISA, "Warp Level
// Matrix Multiply-Accumulate Instructions": sections "Matrix Fragments for mma.m16n8k16 with floating point
// type",
// "... mma.m16n8k8", "... mma.m16n8k4", "... mma.m8n8k4 with .f64", "... mma.m8n8k16", "... mma.m16n8k16 with
// integer type", "... mma.m16n8k32", "Matrix fragments for multiply-accumulate operation with sparse matrix
// A" and "Sparse matrix storage". With groupID = %laneid >> 2, threadID_in_group = %laneid % 4 and p elements
// to a register, all of them say the same: one register of the warp, lane after lane, is a tile of 8 rows by
// 4 p columns in row-major order. For B the rows are columns of the matrix: the tile is transposed.
#include "types.h"

namespace simgpu {

struct Place {
  int row, col;
};

// First element of the tile that register `index` of A (M x K, of mma.sp M x K/2) holds.
constexpr Place tile_a(int index, int per_register, int rows) {
  return rows == 8 ? Place{0, 4 * per_register * index}
                   : Place{8 * (index % 2), 4 * per_register * (index / 2)};
}
// The rows of B (K x N, N = 8) that register `index` holds start here.
constexpr int tile_b(int index, int per_register) { return 4 * per_register * index; }

// Accumulators C and D (M x 8) of 32 or 64 bits, one to a register: registers 2 h and 2 h + 1 together are
// rows 8 h to 8 h + 7, their columns in turn. Of f16 two to a register: register h is those rows.

// The sparsity metadata of mma.sp. Each row of A has `bits` of it, low columns first; they come in parts: of
// 16 bits, row groupID in the low half of a thread's register and row groupID + 8 in the high half; for 8-bit
// elements of 32 bits, the two rows in neighbouring threads. `selector` names the threads of a group that
// hold it.
struct MetadataPlace {
  int thread, shift, bits;  // thread in the group of four
};
constexpr MetadataPlace metadata_place(int part, int parts, bool high_row, bool byte_elements, int selector) {
  if (byte_elements) return {(parts == 1 ? 2 * selector : 0) + 2 * part + (high_row ? 1 : 0), 0, 32};
  return {(parts == 1 ? selector : 2 * selector) + part, high_row ? 16 : 0, 16};
}
constexpr int metadata_selectors(int parts, bool byte_elements) {
  return byte_elements ? (parts == 1 ? 2 : 1) : (parts == 1 ? 4 : 2);
}

// ldmatrix .m8n8 .b16: the two elements that a lane receives of a matrix, whose row r starts at the address
// of lane 8 * matrix + r.
constexpr Place place_ldmatrix(int lane, int element, bool transposed) {
  return transposed ? Place{2 * (lane % 4) + element, lane / 4} : Place{lane / 4, 2 * (lane % 4) + element};
}

}  // namespace simgpu
