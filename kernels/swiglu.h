#pragma once

// silu(gate) * up, the gated unit of Llama's feed-forward.

#include <cstdint>

#include "kernels/row_matrix.h"

namespace ergon::kernels {

// y = gate * sigmoid(gate) * up
// dgate = dout * up * s * (1 + gate * (1 - s)),  dup = dout * gate * s,  s = sigmoid(gate)
//
// gate, up, y, dout, dgate, dup  (rows, cols)  f32 | bf16 | f16 | f64, f64 only together
//
// Outputs are = (not +=); each may be the same memory as an input of its dtype and stride. Computes in fp32
// (f64 for f64) and rounds once. Deterministic. No alignment is required. Bytes: rows * cols elements of each
// operand. One exp and one division an element.
struct SwigluParams {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  RowMatrix gate = {}, up = {};
  RowMatrix y = {};                           // forward
  RowMatrix dout = {}, dgate = {}, dup = {};  // backward
};

namespace cpu {

void swiglu_forward(const SwigluParams& params);
void swiglu_backward(const SwigluParams& params);

}  // namespace cpu

// All operands have one dtype; fewer than 2^31 elements. Rows move in 16-byte vectors where they consist of
// whole ones and pointers and strides are multiples of 16 bytes.
namespace cuda {

void swiglu_forward(const SwigluParams& params);
void swiglu_backward(const SwigluParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
