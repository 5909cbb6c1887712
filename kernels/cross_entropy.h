#pragma once

// Cross-entropy of logits with class indices, without stored probabilities.

#include <cstdint>

#include "kernels/row_matrix.h"

namespace ergon::kernels {

// For each row r with target t:
//   lse[r]  = log(sum_c exp(logits[r, c]))
//   loss[r] = lse[r] - (1 - smoothing) * logits[r, t] - smoothing * mean_c(logits[r, c])
//   dlogits[r, c] = (exp(logits[r, c] - lse[r]) - (1 - smoothing) * [c == t] - smoothing / cols)
//                   * weight * dloss[r]
// and for a row whose target is ignore_index: loss[r] = 0, dlogits[r, :] = 0, whatever the logits.
//
// logits, dlogits  (rows, cols)  f32 | bf16 | f16, each its own dtype, or both f64; dlogits may be the same
//                                memory as logits
// targets          (rows)        contiguous i32 or i64, each in [0, cols) or ignore_index
// lse, loss        (rows)        f32, or f64 with f64 logits; in a forward either may be null: not stored
// dloss            (rows)        like lse, elements dloss_stride apart (0: one for all rows); null: 1
// weight           ()            like lse; null: 1
//
// The forward reads the logits once; the sum is rescaled whenever the maximum rises. A logit of -inf has
// probability 0. dlogits is = (not +=). Deterministic, the same bits for any number of threads. No alignment
// is required.
// Bytes: forward rows * cols * logits; backward rows * cols * (logits + dlogits). One exp an element each.
struct CrossEntropyParams {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  RowMatrix logits = {};
  const void* targets = nullptr;
  DType target_dtype = DType::i64;
  std::int64_t ignore_index = -100;
  double smoothing = 0;
  void* lse = nullptr;
  void* loss = nullptr;         // forward only
  const void* dloss = nullptr;  // the rest: backward only
  std::int64_t dloss_stride = 0;
  const void* weight = nullptr;
  RowMatrix dlogits = {};
};

// weight = 1 / (number of targets that are not ignore_index): what a mean multiplies with; infinite for none.
// total  = sum_r loss[r], times weight if there is one. 0 times infinity: the mean over nothing is NaN.
//
// targets  (rows)  contiguous i32 or i64
// weight   ()      dtype
// loss     (rows)  dtype: f32 | f64, summed in f64
struct TargetWeightParams {
  std::int64_t rows = 0;
  std::int64_t cols = 0;  // classes
  const void* targets = nullptr;
  DType target_dtype = DType::i64;
  std::int64_t ignore_index = -100;
  DType dtype = DType::f32;
  void* weight = nullptr;
};
struct TotalLossParams {
  std::int64_t rows = 0;
  DType dtype = DType::f32;
  const void* loss = nullptr;
  const void* weight = nullptr;  // null: 1
  void* total = nullptr;
};

// Blocks of 1024 columns; sums within a block are in fp32 (f64 for f64), across blocks in f64; losses are
// added up in order. Exponentials are vec_math.h's; half_math.h's, within 2^-17, in the forward for bf16 and
// f16 logits, which moves lse by as much, and in the backward for bf16 and f16 gradients.
namespace cpu {

void cross_entropy_forward(const CrossEntropyParams& params);
void cross_entropy_backward(const CrossEntropyParams& params);
void target_weight(const TargetWeightParams& params);
void total_loss(const TotalLossParams& params);

}  // namespace cpu

// logits and dlogits have one dtype, or are f32 and half precision. Sums are in fp32 (f64 for f64): cols /
// 512 terms in a thread one after the other, then a tree. Rows move in 16-byte vectors where they consist of
// whole ones and pointers and strides are multiples of 16 bytes. Targets are not checked before:
// target_weight makes the first one that is neither in [0, cols) nor ignore_index an index fault
// (core/cuda/index_fault.h); elsewhere it counts as ignored. Logits of ignored rows are not read.
namespace cuda {

void cross_entropy_forward(const CrossEntropyParams& params);
void cross_entropy_backward(const CrossEntropyParams& params);
void target_weight(const TargetWeightParams& params);
void total_loss(const TotalLossParams& params);

}  // namespace cuda
}  // namespace ergon::kernels
