#pragma once

// One rectangle of C on one thread, by cache blocks (after Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication", 2008): a block of A is packed once, and each panel of B just
// before it meets all of that block, so that it is still in the first or second cache level. Operands that
// can be read in place need no copy.

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/gemm_epilogue.h"
#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_problem.h"

namespace ergon::kernels::cpu::gemm_detail {

struct Plan {
  int64_t block_m, block_n,
      block_k;          // multiples of the tile; block_k depends on K alone, so that bits do, too
  bool pack_a, pack_b;  // else read in place
  bool scratch_c;       // sums over several blocks of K stay in T until they are complete

  // Elements E, and sums, of workspace for one thread.
  template <class E>
  int64_t packed() const {
    return (kTileN<E> + (pack_a ? block_m : 0)) * (block_k / kDepth<E>);
  }
  int64_t scratch() const { return scratch_c ? block_m * block_n : 0; }
};

template <class E>
class BlockedGemm {
 public:
  using T = Sum<E>;

  BlockedGemm(const Problem<T>& problem, const Plan& plan, E* packed, T* scratch)
      : p_(problem), plan_(plan), panel_b_(packed), scratch_(scratch) {
    packed_a_ = panel_b_ + kTileN<E> * (plan.block_k / kDepth<E>);
  }

  // Rows [i0, i1) and columns [j0, j1) of C.
  void run(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const int64_t depths = std::max<int64_t>(1, (p_.K + plan_.block_k - 1) / plan_.block_k);
    Block block;
    for (block.j = j0; block.j < j1; block.j += plan_.block_n) {
      block.n = std::min(plan_.block_n, j1 - block.j);
      for (block.i = i0; block.i < i1; block.i += plan_.block_m) {
        block.m = std::min(plan_.block_m, i1 - block.i);
        for (int64_t depth = 0; depth < depths; ++depth) {
          block.k = depth * plan_.block_k;
          block.depth = std::min(plan_.block_k, p_.K - block.k);
          if (plan_.pack_a) pack_a(block);
          for (int64_t j = 0; j < block.n; j += kTileN<E>) multiply_panel(block, j);
        }
      }
    }
    if (p_.streams_pre_activation) drain_streams();
  }

 private:
  // C[i .. i + m, j .. j + n] += A[.., k .. k + depth] B[k .. k + depth, ..]
  struct Block {
    int64_t i, m, j, n, k, depth;
  };

  // Panels of kTileM rows side by side, the last one narrower.
  void pack_a(const Block& block) const {
    // Where rows lie side by side, all panels advance together, some k at a time: along the memory of A.
    const int64_t step = p_.a.row == 1 ? 32 : std::max<int64_t>(1, block.depth);
    for (int64_t k = 0; k < block.depth; k += step) {
      const int64_t depth = std::min(step, block.depth - k);
      for (int64_t i = 0; i < block.m; i += kTileM) {
        const int rows = static_cast<int>(std::min<int64_t>(kTileM, block.m - i));
        pack(p_.a, (block.i + i) * p_.a.row + (block.k + k) * p_.a.col, p_.a.row, p_.a.col, rows, depth,
             block.depth - k - depth, rows,
             packed_a_ + i * elements_of<E>(block.depth) + k / kDepth<E> * rows);
      }
    }
  }

  static void pack(const Matrix<const void*>& x, int64_t offset, int64_t lane_stride, int64_t k_stride,
                   int lanes, int64_t depth, int64_t more, int width, E* target) {
    with_operand_type<E>(x.dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      pack_panel(Panel<S>{static_cast<const S*>(x.data) + offset, lane_stride, k_stride, lanes, depth, more},
                 width, target);
    });
  }

  // Columns [j, j + kTileN) of the block.
  void multiply_panel(const Block& block, int64_t j) const {
    const int columns = static_cast<int>(std::min<int64_t>(kTileN<E>, block.n - j));
    const int vectors = columns <= kLanes<E> ? 1 : 2;
    const int width = vectors * kLanes<E>;
    const int64_t offset = block.k * p_.b.row + (block.j + j) * p_.b.col;
    TileArgs<E> args;
    args.K = elements_of<E>(block.depth);
    args.alpha = p_.alpha;
    if (!plan_.pack_b && columns == width) {
      args.b = static_cast<const E*>(p_.b.data) + offset;
      args.ldb = p_.b.row;
    } else {
      pack(p_.b, offset, p_.b.col, p_.b.row, columns, block.depth, 0, width, panel_b_);
      args.b = panel_b_;
      args.ldb = width;
    }
    for (int64_t i = 0; i < block.m; i += kTileM) {
      const int rows = static_cast<int>(std::min<int64_t>(kTileM, block.m - i));
      if (plan_.pack_a) {
        args.a = packed_a_ + i * args.K;
        args.row_stride = 1;
        args.col_stride = rows;
      } else {
        const int64_t first = (block.i + i) * p_.a.row + block.k * p_.a.col;
        args.a = reinterpret_cast<const E*>(static_cast<const Source<E>*>(p_.a.data) + first);
        args.row_stride = p_.a.row / kDepth<E>;
        args.col_stride = p_.a.col;
      }
      multiply_tile(block, args, i, rows, j, columns, vectors);
    }
  }

  void multiply_tile(const Block& block, TileArgs<E>& args, int64_t i, int rows, int64_t j, int columns,
                     int vectors) const {
    const bool first = block.k == 0;
    const bool last = block.k + block.depth == p_.K;
    const bool epilogue = last && has_epilogue(p_);
    const T beta = first || plan_.scratch_c ? p_.beta : T(1);
    const int64_t offset = (block.i + i) * p_.c.row + (block.j + j) * p_.c.col;
    args.destination = static_cast<const char*>(p_.c.data) + offset * element_;
    args.destination_stride = p_.c.row * element_;
    if (!plan_.scratch_c && p_.c.dtype == dtype_of<T>() && p_.c.col == 1
        && columns == vectors * kLanes<E> && !epilogue && (beta == T(0) || beta == T(1))) {
      args.c = static_cast<T*>(p_.c.data) + offset;
      args.ldc = p_.c.row;
      args.accumulate = beta == T(1);
      return run_tile(args, rows, vectors);
    }
    if (epilogue) ask_for_operands(offset * element_, rows, columns);
    alignas(kVectorBytes) T buffer[kTileM * kTileN<T>];
    args.c = plan_.scratch_c ? scratch_ + i * plan_.block_n + j : buffer;
    args.ldc = plan_.scratch_c ? plan_.block_n : kTileN<T>;
    args.accumulate = plan_.scratch_c && !first;
    run_tile(args, rows, vectors);
    if (plan_.scratch_c && !last) return;
    finish_tile(p_, {args.c, args.ldc, rows, columns}, block.i + i, block.j + j, beta, last);
  }

  // The lines of a tile that the epilogue reads or writes besides C's come while its sums are made.
  void ask_for_operands(int64_t offset, int rows, int columns) const {
    const void* pre_activation = p_.streams_pre_activation ? nullptr : p_.pre_activation;
    for (const void* operand : {pre_activation, p_.residual}) {
      if (operand == nullptr) continue;
      const char* row = static_cast<const char*>(operand) + offset;
      for (int i = 0; i < rows; ++i, row += p_.c.row * element_) {
        for (int64_t byte = 0; byte < columns * element_; byte += 64) __builtin_prefetch(row + byte, 1);
      }
    }
  }

  const Problem<T>& p_;
  const Plan& plan_;
  const int64_t element_ = size_of(p_.c.dtype);  // bytes
  E* panel_b_;                                   // block_k x kTileN
  E* packed_a_;                                  // block_m x block_k
  T* scratch_;                                   // block_m x block_n
};

}  // namespace ergon::kernels::cpu::gemm_detail
