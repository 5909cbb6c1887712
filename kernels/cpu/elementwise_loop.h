#pragma once

// The loop under every elementwise kernel: walks operands of one shape block by block.

#include <array>
#include <span>

#include "kernels/cpu/block.h"
#include "kernels/elementwise.h"

namespace ergon::kernels::cpu {

constexpr int kMaxOperands = 4;

// blocks[0][i] = op(blocks[1][i], ...) for i < n; blocks[0] may be one of the others.
template <class T>
using BlockFunction = void (*)(int op, const std::array<T*, kMaxOperands>& blocks, std::int64_t n);

// Calls `function` on blocks of the operands (the output first) until `shape` is done. Dimensions are sorted
// by the output's strides and merged where every operand allows it. Blocks are pieces of one long row,
// several short rows, or 32 x 32 tiles where an operand is transposed, so that its cache lines are used
// whole.
template <class T>
void for_each_block(const Shape& shape, std::span<const Operand> operands, BlockFunction<T> function, int op);

}  // namespace ergon::kernels::cpu
