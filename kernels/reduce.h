#pragma once

// Sums and extrema over some of a tensor's dimensions.

#include <array>

#include "kernels/elementwise.h"

namespace ergon::kernels {

enum class ReduceOp { sum, max, min };

struct ReduceArgs {
  ReduceOp op = ReduceOp::sum;
  DType compute = DType::f32;  // f32, f64 or i64: the type of the accumulators
  Shape shape;                 // of x
  std::array<bool, Dims::kMaxDims> reduced{};
  Operand x;
  void* y = nullptr;  // dense, the other dimensions in their order
  DType y_dtype = DType::f32;
  double divisor = 1;  // y = op(...) / divisor, before it is rounded; floating point only
};

// values[o, i] = max or min over k of x[o, k, i], indices[o, i] the first k that has it; NaN counts as both
// largest and smallest.
// x        (outer, length, inner)  contiguous, any dtype, 1 <= length < 2^31
// values   (outer, inner)          contiguous, x's dtype; may be null
// indices  (outer, inner)          contiguous i64
struct ExtremumArgs {
  ReduceOp op = ReduceOp::max;  // or min
  DType dtype = DType::f32;
  const void* x = nullptr;
  void* values = nullptr;
  std::int64_t* indices = nullptr;
  std::int64_t outer = 1, length = 1, inner = 1;
};

namespace cpu {

// y = op over the reduced dimensions of x. Of no elements: 0 for a sum, the lowest or highest value for max
// and min. NaN passes through max and min.
//
// Accumulates in `compute`, as a tree: the error is at most 25 + log2(n) roundings of sum |x| for n elements
// a result, 40 + log2(n) in f64. Pieces of fixed sizes are reduced on their own and then combined, so the
// result does not depend on the number of threads. `workspace`: reduce_workspace(args) elements of type
// `compute`, for those pieces. Bytes: numel(x) * size + results. No alignment is required.
std::int64_t reduce_workspace(const ReduceArgs& args);
void reduce(const ReduceArgs& args, void* workspace);

// workspace: extremum_workspace(args) bytes, none on the CPU. Bytes: x and the results.
std::int64_t extremum_workspace(const ExtremumArgs& args);
void extremum(const ExtremumArgs& args, void* workspace);

// dx[o, indices[o, i], i] = dy[o, i]; the rest of dx stays as it is.
// dx (outer, length, inner), dy (outer, inner): contiguous, `element_size` bytes an element
void scatter_along(std::int64_t element_size, void* dx, const void* dy, const std::int64_t* indices,
                   std::int64_t outer, std::int64_t length, std::int64_t inner);

}  // namespace cpu

namespace cuda {

// The same on the current stream. Sums have the CPU's bound: a thread adds up to 16 elements, in groups of
// four; a block's sums are combined as a tree, and so are those of several blocks, which go through the
// workspace: the order depends on shape, strides and alignment alone. Vectors of 16 bytes (along x's rows; of
// four elements across them) where x is f32, bf16 or f16 and dense along its innermost dimension, and starts
// at multiples of its vectors along the others. Fewer than 2^31 results and 2^31 reduced vectors.
// Bytes: those above and twice the workspace's.
std::int64_t reduce_workspace(const ReduceArgs& args);
void reduce(const ReduceArgs& args, void* workspace);

// Where the results are too few to fill the device, several blocks share one, and leave what they have found
// in the workspace, 16-byte aligned.
std::int64_t extremum_workspace(const ExtremumArgs& args);
void extremum(const ExtremumArgs& args, void* workspace);

void scatter_along(std::int64_t element_size, void* dx, const void* dy, const std::int64_t* indices,
                   std::int64_t outer, std::int64_t length, std::int64_t inner);

}  // namespace cuda
}  // namespace ergon::kernels
