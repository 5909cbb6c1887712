#pragma once

// The loop under every elementwise kernel: walks operands of one shape block by block.

#include <algorithm>
#include <array>
#include <span>
#include <type_traits>
#include <utility>

#include "core/error.h"
#include "core/half.h"
#include "kernels/cpu/block.h"
#include "kernels/cpu/vector_loop.h"
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

// Calls f(TypeTag<S>): S is the type that blocks are to be of, that of `compute`, or the half type that all
// operands are stored in.
template <class F>
void dispatch_blocks(DType compute, std::span<const Operand> operands, F f) {
  const DType dtype = operands[0].dtype;
  const bool alike = std::ranges::all_of(operands, [&](const Operand& x) { return x.dtype == dtype; });
  if (alike && compute == DType::f32 && dtype == DType::bf16) return f(TypeTag<bf16>{});
  if (alike && compute == DType::f32 && dtype == DType::f16) return f(TypeTag<f16>{});
  if (compute == DType::f32) return f(TypeTag<float>{});
  if (compute == DType::f64) return f(TypeTag<double>{});
  ERGON_INTERNAL_ASSERT(compute == DType::i64);
  f(TypeTag<std::int64_t>{});
}

// blocks[0][i] = f(blocks[1][i], ...), kInputs of them, computed in compute_t<S>. For halves f may take
// and give vectors of float: blocks are converted in registers.
template <int kInputs, class S, class F>
void loop_blocks(std::array<S*, kMaxOperands> blocks, std::int64_t n, F f) {
  [&]<std::size_t... k>(std::index_sequence<k...>) {
    if constexpr (is_half(dtype_of<S>())) {
      for_each_vector<float>(n, [&](std::int64_t i, auto at) {
        if constexpr (std::is_invocable_v<F, decltype(at.load(blocks[k + 1]))...>) {
          at.store(blocks[0] + i, f(at.load(blocks[k + 1] + i)...));
        } else {
          at.store(blocks[0] + i, map_lanes<float>(f, at.load(blocks[k + 1] + i)...));
        }
      });
    } else {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) blocks[0][i] = f(blocks[k + 1][i]...);
    }
  }
  (std::make_index_sequence<kInputs>{});
}

}  // namespace ergon::kernels::cpu
