#pragma once
// How the lanes of a warp hold the matrices of mma, as in the PTX ISA, "Warp Level Matrix Multiply-Accumulate
// Instructions", sections "Matrix Fragments for mma.m16n8k16 with floating point type", "... mma.m16n8k8",
// "... mma.m16n8k4",
// "... mma.m8n8k4 with .f64", "... mma.m8n8k16", "... mma.m16n8k16 with integer type" and "... mma.m16n8k32".
// With
//   groupID = %laneid >> 2,  threadID_in_group = %laneid % 4,
// and e elements to a register, all of them come to the formulas below.
#include "types.h"

namespace simgpu {

struct Place {
  int row, col;
};

// Element `element` of register `index` of A (M x K).
constexpr Place place_a(int lane, int index, int element, int per_register) {
  return {lane / 4 + 8 * (index % 2), per_register * (lane % 4) + element + 4 * per_register * (index / 2)};
}
// M = 8: one row of tiles.
constexpr Place place_a8(int lane, int index, int element, int per_register) {
  return {lane / 4, per_register * (lane % 4) + element + 4 * per_register * index};
}
// B (K x N).
constexpr Place place_b(int lane, int index, int element, int per_register) {
  return {per_register * (lane % 4) + element + 4 * per_register * index, lane / 4};
}
// C and D (M x N): accumulators of 32 or 64 bits, one to a register; f16 two to a register.
constexpr Place place_c(int lane, int index) {
  return {lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2};
}
constexpr Place place_c_f16(int lane, int index, int element) {
  return {lane / 4 + 8 * index, 2 * (lane % 4) + element};
}

// ldmatrix .m8n8 .b16: the two elements that a lane receives of a matrix, whose row r starts at the address
// of lane 8 * matrix + r.
constexpr Place place_ldmatrix(int lane, int element, bool transposed) {
  return transposed ? Place{2 * (lane % 4) + element, lane / 4} : Place{lane / 4, 2 * (lane % 4) + element};
}

}  // namespace simgpu
