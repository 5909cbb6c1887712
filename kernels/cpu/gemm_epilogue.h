#pragma once

// From a finished register tile to C: the earlier sum, bias, activation, conversion and C's strides.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/convert.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/gemm_problem.h"

namespace ergon::kernels::cpu::gemm_detail {

// Finished sums, alpha included.
template <class T>
struct Tile {
  const T* data;
  int64_t stride;
  int rows, columns;  // columns <= kTileN<T>
};

// Where the elements of one tile go; pointers at its first element.
template <class C, class T>
struct TileOutput {
  C* c;
  int64_t row_stride, col_stride;
  C* pre_activation;  // null: none; c's strides
  const C* residual;  // likewise
  bool activation_backward;
  bool streams_pre_activation;
  const T* bias;  // null: none
  T beta;         // 0: c is not read
};

template <Activation kActivation, class T>
inline void activate(T* row, int n) {
  if constexpr (kActivation == Activation::none) return;
  for (int j = 0; j < n; ++j) {
    const T x = row[j];
    if constexpr (kActivation == Activation::relu) row[j] = relu(x);
    if constexpr (kActivation == Activation::gelu_tanh) row[j] = gelu_tanh(x);
    if constexpr (kActivation == Activation::gelu_erf) row[j] = gelu_erf(x);
    if constexpr (kActivation == Activation::silu) row[j] = silu(x);
  }
}

// row[j] *= act'(pre[j])
template <Activation kActivation, class T>
inline void multiply_by_derivative(T* row, const T* pre, int n) {
  for (int j = 0; j < n; ++j) {
    if constexpr (kActivation == Activation::relu) row[j] = pre[j] > T(0) ? row[j] : T(0);
    if constexpr (kActivation == Activation::gelu_tanh) row[j] *= gelu_tanh_grad(pre[j]);
    if constexpr (kActivation == Activation::gelu_erf) row[j] *= gelu_erf_grad(pre[j]);
    if constexpr (kActivation == Activation::silu) row[j] *= silu_grad(pre[j]);
  }
}

template <class T, class C>
inline void read_row(const C* c, int64_t stride, T* row, int cols) {
  if (stride == 1) return convert_run(c, row, cols);
  for (int j = 0; j < cols; ++j) row[j] = static_cast<T>(c[j * stride]);
}

template <class T, class C>
inline void write_row(const T* row, C* c, int64_t stride, int cols) {
  if (stride == 1) return convert_run(row, c, cols);
  for (int j = 0; j < cols; ++j) c[j * stride] = static_cast<C>(row[j]);
}

// A row of a full tile past the caches.
template <class T, class C>
inline void stream_row(const T* row, C* c) {
  if constexpr (std::is_same_v<C, float>) {
    for (int j = 0; j < kTileN<T>; j += kLanes<T>) stream(c + j, load(row + j));
  }
}

// kWhole: a full tile of columns one element apart in c, which the compiler can unroll.
template <Activation kActivation, bool kWhole, class C, class T>
void finish_rows(const Tile<T>& tile, const TileOutput<C, T>& out) {
  constexpr int kWidth = kTileN<T>;
  const int columns = kWhole ? kWidth : tile.columns;
  const int64_t stride = kWhole ? 1 : out.col_stride;
  T bias[kWidth] = {};
  for (int j = 0; out.bias != nullptr && j < columns; ++j) bias[j] = out.bias[j];
  for (int i = 0; i < tile.rows; ++i) {
    const T* sums = tile.data + i * tile.stride;
    C* c = out.c + i * out.row_stride;
    T row[kWidth], other[kWidth];
    for (int j = 0; j < columns; ++j) row[j] = sums[j] + bias[j];
    if (out.beta != T(0)) {
      read_row(c, stride, other, columns);
      for (int j = 0; j < columns; ++j) row[j] += out.beta * other[j];
    }
    if (out.activation_backward) {
      read_row(out.pre_activation + i * out.row_stride, stride, other, columns);
      multiply_by_derivative<kActivation>(row, other, columns);
    } else {
      if (out.pre_activation != nullptr) {
        C* pre = out.pre_activation + i * out.row_stride;
        kWhole&& out.streams_pre_activation ? stream_row(row, pre) : write_row(row, pre, stride, columns);
      }
      activate<kActivation>(row, columns);
    }
    if (out.residual != nullptr) {
      read_row(out.residual + i * out.row_stride, stride, other, columns);
      for (int j = 0; j < columns; ++j) row[j] += other[j];
    }
    write_row(row, c, stride, columns);
  }
}

template <Activation kActivation, class C, class T>
void finish_rows(const Tile<T>& tile, const TileOutput<C, T>& out) {
  if (tile.columns == kTileN<T> && out.col_stride == 1) return finish_rows<kActivation, true>(tile, out);
  finish_rows<kActivation, false>(tile, out);
}

template <class T>
bool has_epilogue(const Problem<T>& p) {
  return p.bias != nullptr || p.activation != Activation::none || p.pre_activation != nullptr
         || p.residual != nullptr;
}

// Writes the tile whose first element is C[i, j]: tile + beta * C, and with `complete`, the epilogue.
template <class T>
void finish_tile(const Problem<T>& p, const Tile<T>& tile, int64_t i, int64_t j, T beta, bool complete) {
  const int64_t offset = i * p.c.row + j * p.c.col;
  with_type<T>(p.c.dtype, [&](auto tag) {
    using C = typename decltype(tag)::type;
    TileOutput<C, T> out = {.c = static_cast<C*>(p.c.data) + offset,
                            .row_stride = p.c.row,
                            .col_stride = p.c.col,
                            .pre_activation = nullptr,
                            .residual = nullptr,
                            .activation_backward = false,
                            .streams_pre_activation = p.streams_pre_activation,
                            .bias = nullptr,
                            .beta = beta};
    if (!complete) return finish_rows<Activation::none>(tile, out);
    if (p.pre_activation != nullptr) out.pre_activation = static_cast<C*>(p.pre_activation) + offset;
    if (p.residual != nullptr) out.residual = static_cast<const C*>(p.residual) + offset;
    out.activation_backward = p.activation_backward;
    if (p.bias != nullptr) out.bias = p.bias + j;
    switch (p.activation) {
      case Activation::none:
        return finish_rows<Activation::none>(tile, out);
      case Activation::relu:
        return finish_rows<Activation::relu>(tile, out);
      case Activation::gelu_tanh:
        return finish_rows<Activation::gelu_tanh>(tile, out);
      case Activation::gelu_erf:
        return finish_rows<Activation::gelu_erf>(tile, out);
      case Activation::silu:
        return finish_rows<Activation::silu>(tile, out);
    }
  });
}

}  // namespace ergon::kernels::cpu::gemm_detail
