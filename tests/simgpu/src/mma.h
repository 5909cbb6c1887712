#pragma once
// Matrix instructions as pure functions over a warp's registers: registers are arrays of 32 lanes, `u32 r[32]`.
// The fragment layouts come from the tables in fragments.h, which are written from the PTX ISA's sections.
#include "types.h"

namespace simgpu {

enum class MmaType : u8 { kF16, kBf16, kTf32, kF64, kS8, kU8, kF32, kS32 };

// One decoded mma: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 and its relatives.
struct MmaShape {
  int m = 0, n = 0, k = 0;
  MmaType a = MmaType::kF16, b = MmaType::kF16, c = MmaType::kF32, d = MmaType::kF32;
  bool sparse = false;     // mma.sp::ordered_metadata: A holds k/2 columns
  bool saturate = false;   // .satfinite of the integer forms
  int a_registers = 0, b_registers = 0, c_registers = 0;  // 32-bit registers a lane (64-bit for f64)
};

// nullptr when the combination does not exist on sm_80. Operands: d, a, b, c arrays of pointers to 32-lane registers
// (u32[32]; u64[32] for f64); metadata and selector only for sparse forms. All 32 lanes take part.
using MmaFunction = void (*)(const MmaShape& shape, void* const* d, const void* const* a, const void* const* b,
                             const void* const* c, const u32* metadata, u32 selector);
MmaFunction find_mma(MmaShape& shape);  // fills in the register counts

}  // namespace simgpu
