#pragma once

#include <optional>

#include "core/tensor.h"

namespace ergon::ops {

// Llama 3's stretching of long wavelengths to a longer context; the fields are those of "rope_scaling" in
// Hugging Face's config.json, with its defaults.
struct Llama3RopeScaling {
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  std::int64_t original_max_position = 8192;

  friend bool operator==(const Llama3RopeScaling&, const Llama3RopeScaling&) = default;
};

struct RotaryOptions {
  double theta = 10000;
  std::int64_t position_offset = 0;   // of the first token
  Tensor positions = {};              // instead of an offset: (seqlen) or (batch, seqlen), i32 or i64
  std::int64_t max_positions = 8192;  // `positions` on a CUDA device are below it
  bool interleaved = false;           // pairs (2 i, 2 i + 1); else (i, i + head_dim / 2), as Hugging Face
  std::optional<Llama3RopeScaling> scaling = {};
};

// Rotary position embedding (Su et al. 2021, arXiv 2104.09864): rotates pair i of each head by position *
// theta^(-2 i / head_dim). Differentiable; the backward is the inverse rotation.
//   x  (batch, seqlen, num_heads, head_dim), head_dim even; f32, bf16, f16 or f64; any strides, a last one
//   other than
//      1 costs a copy
// Returns a contiguous tensor of x's shape. Cosines and sines are computed in f64, rounded to fp32 (kept in
// f64 for f64) and cached for the process. Positions must be in [0, 2^22); on a CUDA device, where
// they cannot be looked at without waiting, given ones in [0, max_positions). Throws Error naming the shapes
// or the position if they do not fit.
Tensor rotary_embedding(const Tensor& x, const RotaryOptions& options = {});

}  // namespace ergon::ops
