#include "kernels/cpu/elementwise_loop.h"

#include <algorithm>
#include <numeric>

#include "core/half.h"
#include "core/parallel.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;       // elements that a thread is worth waking for
constexpr std::int64_t kDenseRun = 8192;     // elements a call where no operand needs a buffer
constexpr std::int64_t kLongRow = 128;       // elements that are worth a call of their own
constexpr std::int64_t kTransposeTile = 16;  // rows and columns: two cache lines of float each way

// A loop nest over tiles: the outer dimensions one index at a time, the last two in steps of a tile.
struct Grid {
  std::span<const Operand> operands;
  Shape shape;                                // merged; at least two dimensions
  std::array<Strides, kMaxOperands> strides;  // of the operands, in elements
  std::int64_t tile_rows = 1, tile_cols = 1;

  int dims() const { return shape.size(); }
  std::int64_t steps(int dim) const {
    if (dim == dims() - 1) return (shape[dim] + tile_cols - 1) / tile_cols;
    if (dim == dims() - 2) return (shape[dim] + tile_rows - 1) / tile_rows;
    return shape[dim];
  }
  std::int64_t tiles() const {
    std::int64_t count = 1;
    for (int dim = 0; dim < dims(); ++dim) count *= steps(dim);
    return count;
  }
};

// Dimensions of more than one element, those with the longest steps in the output first.
Dims sorted_dims(const Shape& shape, const Strides& output_strides) {
  Dims order;
  for (int dim = 0; dim < shape.size(); ++dim) {
    if (shape[dim] != 1) order.push_back(dim);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return std::abs(output_strides[static_cast<int>(a)]) > std::abs(output_strides[static_cast<int>(b)]);
  });
  return order;
}

Grid merged_grid(const Shape& shape, std::span<const Operand> operands) {
  Grid grid{.operands = operands, .shape = {}, .strides = {}};
  for (std::int64_t sorted : sorted_dims(shape, operands[0].strides)) {
    const int dim = static_cast<int>(sorted);
    bool mergeable = !grid.shape.empty();
    for (std::size_t k = 0; mergeable && k < operands.size(); ++k) {
      mergeable = grid.strides[k].back() == operands[k].strides[dim] * shape[dim];
    }
    if (mergeable) {
      grid.shape.back() *= shape[dim];
      for (std::size_t k = 0; k < operands.size(); ++k) grid.strides[k].back() = operands[k].strides[dim];
    } else {
      grid.shape.push_back(shape[dim]);
      for (std::size_t k = 0; k < operands.size(); ++k) grid.strides[k].push_back(operands[k].strides[dim]);
    }
  }
  while (grid.shape.size() < 2) {
    grid.shape.insert(0, 1);
    // A row of one element is dense whatever its stride was.
    for (Strides& strides : grid.strides) strides.insert(0, strides.empty() ? 1 : 0);
  }
  return grid;
}

Grid plan(const Shape& shape, std::span<const Operand> operands, DType compute) {
  Grid grid = merged_grid(shape, operands);
  const int last = grid.dims() - 1;
  const std::int64_t rows = grid.shape[last - 1], cols = grid.shape[last];
  bool all_dense = true, transposed = false, padded = false;
  for (std::size_t k = 0; k < operands.size(); ++k) {
    const std::int64_t row_stride = grid.strides[k][last - 1], col_stride = grid.strides[k][last];
    all_dense &= operands[k].dtype == compute && col_stride == 1;
    transposed |= rows > 1 && row_stride != 0 && std::abs(row_stride) < std::abs(col_stride);
    padded |= rows > 1 && row_stride != 0 && row_stride != cols;
  }
  const std::int64_t longest = transposed ? kTransposeTile : all_dense ? kDenseRun : kBlockSize;
  grid.tile_cols = std::min(cols, longest);
  // Several short rows make a block, but rows that can be used in place are not worth copying together.
  const bool row_by_row = all_dense && padded && cols >= kLongRow;
  grid.tile_rows = row_by_row ? 1 : std::clamp<std::int64_t>(kBlockSize / grid.tile_cols, 1, rows);
  return grid;
}

// Where a thread stands in the grid.
class Cursor {
 public:
  Cursor(const Grid& grid, std::int64_t tile) : grid_(grid), index_(Dims::filled(grid.dims(), 0)) {
    for (int dim = grid.dims() - 1; dim >= 0; --dim) {
      index_[dim] = tile % grid.steps(dim);
      tile /= grid.steps(dim);
      move(dim, index_[dim]);
    }
  }

  void next() {
    for (int dim = grid_.dims() - 1; dim >= 0; --dim) {
      move(dim, 1);
      if (++index_[dim] < grid_.steps(dim)) break;
      move(dim, -index_[dim]);
      index_[dim] = 0;
    }
  }

  Block block(std::size_t k) const {
    const int last = grid_.dims() - 1;
    const Operand& operand = grid_.operands[k];
    return {.data = static_cast<char*>(operand.data) + offsets_[k] * size_of(operand.dtype),
            .dtype = operand.dtype,
            .rows = std::min(grid_.tile_rows, grid_.shape[last - 1] - index_[last - 1] * grid_.tile_rows),
            .cols = std::min(grid_.tile_cols, grid_.shape[last] - index_[last] * grid_.tile_cols),
            .row_stride = grid_.strides[k][last - 1],
            .col_stride = grid_.strides[k][last]};
  }

 private:
  void move(int dim, std::int64_t steps) {
    const int last = grid_.dims() - 1;
    const std::int64_t length = dim == last ? grid_.tile_cols : dim == last - 1 ? grid_.tile_rows : 1;
    for (std::size_t k = 0; k < grid_.operands.size(); ++k) {
      offsets_[k] += steps * length * grid_.strides[k][dim];
    }
  }

  const Grid& grid_;
  Dims index_;
  std::array<std::int64_t, kMaxOperands> offsets_{};
};

template <class T>
void run_tiles(const Grid& grid, BlockFunction<T> function, int op, std::int64_t begin, std::int64_t end) {
  alignas(64) T buffers[kMaxOperands][kBlockSize];
  std::array<T*, kMaxOperands> blocks{};
  std::array<Block, kMaxOperands> loaded{};
  Cursor cursor(grid, begin);
  for (std::int64_t tile = begin; tile < end; ++tile, cursor.next()) {
    for (std::size_t k = 1; k < grid.operands.size(); ++k) {
      const Block block = cursor.block(k);
      // A broadcast operand may be the same as in the last tile.
      if (block.data == loaded[k].data && block.rows == loaded[k].rows && block.cols == loaded[k].cols)
        continue;
      blocks[k] = const_cast<T*>(load(block, buffers[k]));
      loaded[k] = block;
    }
    const Block output = cursor.block(0);
    const bool in_place = output.dtype == dtype_of<T>() && output.is_dense();
    blocks[0] = in_place ? static_cast<T*>(output.data) : buffers[0];
    function(op, blocks, output.size());
    store(blocks[0], output);
  }
}

}  // namespace

template <class T>
void for_each_block(const Shape& shape, std::span<const Operand> operands, BlockFunction<T> function,
                    int op) {
  if (numel(shape) == 0) return;
  const Grid grid = plan(shape, operands, dtype_of<T>());
  const std::int64_t grain = std::max<std::int64_t>(kGrain / (grid.tile_rows * grid.tile_cols), 1);
  parallel_for(0, grid.tiles(), grain,
               [&](std::int64_t begin, std::int64_t end) { run_tiles(grid, function, op, begin, end); });
}

template void for_each_block<float>(const Shape&, std::span<const Operand>, BlockFunction<float>, int);
template void for_each_block<double>(const Shape&, std::span<const Operand>, BlockFunction<double>, int);
template void for_each_block<std::int64_t>(const Shape&, std::span<const Operand>,
                                           BlockFunction<std::int64_t>, int);
template void for_each_block<bf16>(const Shape&, std::span<const Operand>, BlockFunction<bf16>, int);
template void for_each_block<f16>(const Shape&, std::span<const Operand>, BlockFunction<f16>, int);

}  // namespace ergon::kernels::cpu
