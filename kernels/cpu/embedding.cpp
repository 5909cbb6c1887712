#include "kernels/embedding.h"

#include <cstring>
#include <utility>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

std::int64_t index_of(const EmbeddingParams& p, std::int64_t i) {
  return p.index_dtype == DType::i32 ? static_cast<const std::int32_t*>(p.indices)[i]
                                     : static_cast<const std::int64_t*>(p.indices)[i];
}

// Columns [col, col + cols), at most kBlockSize, of the rows of dweight that are used and already 0. The
// positions that use row v are a list: first[v], next[first[v]], ... up to -1.
template <class S>
void sum_columns(const EmbeddingParams& p, const RowMatrix& dout, const RowMatrix& dweight,
                 const std::int64_t* first, const std::int64_t* next, std::int64_t col, std::int64_t cols) {
  using T = accumulate_t<S>;
  const T zeros[kBlockSize] = {};
  T sum[kBlockSize];
  for (std::int64_t start = 0; start < p.count; ++start) {
    const std::int64_t v = index_of(p, start);
    if (first[v] != start) continue;
    const T* so_far = zeros;
    for (std::int64_t i = start; i >= 0; i = next[i]) {
      const S* x = static_cast<const S*>(dout.data) + i * dout.stride + col;
      const auto add_to = [&](auto* total) {
        for_each_vector<T>(cols, [&](std::int64_t c, auto at) {
          at.store(total + c, at.load(so_far + c) + at.load(x + c));
        });
      };
      if (next[i] >= 0) {
        add_to(sum);
        so_far = sum;
      } else {
        add_to(static_cast<S*>(dweight.data) + v * dweight.stride + col);
      }
    }
  }
}

void zero_rows(const RowMatrix& matrix, std::int64_t rows, std::int64_t cols) {
  const std::int64_t size = size_of(matrix.dtype);
  parallel_for(0, rows, row_grain(cols, 8 * kRowGrain), [&](std::int64_t begin, std::int64_t end) {
    if (matrix.stride == cols) {  // one long piece: memset then bypasses the caches
      std::memset(block_of(matrix, begin, 0, 0).data, 0,
                  static_cast<std::size_t>((end - begin) * cols * size));
      return;
    }
    for (std::int64_t r = begin; r < end; ++r) {
      std::memset(block_of(matrix, r, 0, cols).data, 0, static_cast<std::size_t>(cols * size));
    }
  });
}

}  // namespace

void embedding_forward(const EmbeddingParams& p, const RowMatrix& weight, const RowMatrix& y) {
  const auto bytes = static_cast<std::size_t>(p.cols * size_of(weight.dtype));
  parallel_for(0, p.count, row_grain(p.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(block_of(y, i, 0, p.cols).data, block_of(weight, index_of(p, i), 0, p.cols).data, bytes);
    }
  });
}

void embedding_backward(const EmbeddingParams& p, const RowMatrix& dout, const RowMatrix& dweight,
                        std::int64_t* workspace) {
  zero_rows(dweight, p.vocab, p.cols);
  std::int64_t* first = workspace;
  std::int64_t* next = workspace + p.vocab;
  std::fill_n(first, p.vocab, std::int64_t{-1});
  for (std::int64_t i = p.count - 1; i >= 0; --i) next[i] = std::exchange(first[index_of(p, i)], i);
  // Pieces of columns that start on cache lines.
  constexpr std::int64_t kPiece = 32;
  const std::int64_t pieces = (p.cols + kPiece - 1) / kPiece;
  const std::int64_t grain = row_grain(kPiece * p.count);
  dispatch_floating(dweight.dtype, "embedding_backward", [&](auto tag) {
    parallel_for(0, pieces, grain, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t last = std::min(end * kPiece, p.cols);
      for (std::int64_t col = begin * kPiece; col < last; col += kBlockSize) {
        const std::int64_t cols = std::min(kBlockSize, last - col);
        sum_columns<typename decltype(tag)::type>(p, dout, dweight, first, next, col, cols);
      }
    });
  });
}

}  // namespace ergon::kernels::cpu
