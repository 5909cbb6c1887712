// kernels/norm.h on CUDA. A group of threads keeps a row in registers, and for as many rows as it takes the
// weights, and in the backward the sums of their gradients.

#include "kernels/cuda/common/column_sum.cuh"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/row_group.cuh"
#include "kernels/norm.h"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

// Vectors of a row in the registers of a thread: at most 16 elements, of up to five rows.
template <int kWidth>
inline constexpr int kHeldVectors = kWidth == 8 ? 2 : 4;

// A row of weights, of T or f32; a constant where there is none.
template <class T, int kWidth, int kHeld>
class HeldWeights {
 public:
  using Acc = accumulate_t<T>;

  __device__ HeldWeights(const RowMatrix& matrix, Acc if_absent, int vectors)
      : data_(matrix.data), is_f32_(matrix.dtype == DType::f32), if_absent_(if_absent) {
#pragma unroll
    for (int slot = 0; slot < kHeld; ++slot) {
      const int v = threadIdx.x + slot * blockDim.x;
      if (v < vectors) held_[slot] = read(v);
    }
  }
  __device__ Vector<Acc, kWidth> at(int slot, int v) const { return slot < kHeld ? held_[slot] : read(v); }

 private:
  __device__ Vector<Acc, kWidth> read(int v) const {
    if (data_ == nullptr) {
      Vector<Acc, kWidth> constant;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) constant[i] = if_absent_;
      return constant;
    }
    if (is_f32_) return convert_vector<Acc>(load<kWidth>(static_cast<const float*>(data_) + v * kWidth));
    return convert_vector<Acc>(load<kWidth>(static_cast<const T*>(data_) + v * kWidth));
  }

  Vector<Acc, kWidth> held_[kHeld];
  const void* data_;
  bool is_f32_;
  Acc if_absent_;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kMaxRowThreads) norm_forward_kernel(NormForwardParams p, bool centered) {
  using Acc = accumulate_t<T>;
  constexpr int kHeld = kHeldVectors<kWidth>;
  __shared__ Acc scratch[kWarpSize];
  const Rows<const T> xs(p.x), residuals(p.residual);
  const Rows<T> sums(p.sum), ys(p.y);
  const int vectors = static_cast<int>(p.cols) / kWidth;
  const Acc share = Acc(1) / static_cast<Acc>(p.cols);
  const HeldWeights<T, kWidth, kHeld> weight(p.weight, Acc(1), vectors), bias(p.bias, Acc(0), vectors);
  for (std::int64_t first = first_row(); first < p.rows; first += row_step()) {
    const std::int64_t r = first + threadIdx.y;
    const int own = r < p.rows ? vectors : 0;  // all threads of the block go through the reductions
    const T* x = xs.row(r);
    HeldRow<T, kWidth, kHeld> row;
    row.load(x, own);
    if (residuals) {  // from here on the row is the sum, as rounded: what the backward will see
      for_each_vector<kHeld>(own, [&](int slot, int v) {
        auto s = row.at(x, slot, v);
        const auto other = convert_vector<Acc>(load<kWidth>(residuals.row(r) + v * kWidth));
#pragma unroll
        for (int i = 0; i < kWidth; ++i) s[i] += other[i];
        const Vector<T, kWidth> rounded = convert_vector<T>(s);
        row.set(slot, rounded);
        store(sums.row(r) + v * kWidth, rounded);
      });
      x = sums.row(r);
    }
    Acc mean = 0;
    if (centered) {
      for_each_vector<kHeld>(own, [&](int slot, int v) {
        const auto s = row.at(x, slot, v);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) mean += s[i];
      });
      mean = row_reduce<Sum>(mean, scratch) * share;
    }
    Acc variance = 0;
    for_each_vector<kHeld>(own, [&](int slot, int v) {
      const auto s = row.at(x, slot, v);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) variance += (s[i] - mean) * (s[i] - mean);
    });
    variance = row_reduce<Sum>(variance, scratch) * share;
    const Acc rstd = rsqrt(variance + static_cast<Acc>(p.eps));
    for_each_vector<kHeld>(own, [&](int slot, int v) {
      auto y = row.at(x, slot, v);
      const auto w = weight.at(slot, v), b = bias.at(slot, v);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) y[i] = (y[i] - mean) * rstd * w[i] + b[i];
      store(ys.row(r) + v * kWidth, convert_vector<T>(y));
    });
    if (threadIdx.x == 0 && own > 0) {
      if (p.mean != nullptr) static_cast<Acc*>(p.mean)[r] = mean;
      if (p.rstd != nullptr) static_cast<Acc*>(p.rstd)[r] = rstd;
    }
  }
}

// Sums of the gradients of the weights over the rows of a chunk: in registers, those of the vectors that are
// not held in the workspace.
template <class Acc, int kWidth, int kHeld>
class WeightGradient {
 public:
  __device__ void add(int slot, int v, const Vector<Acc, kWidth>& term, Acc* share, bool first) {
    if (slot < kHeld) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) held_[slot][i] += term[i];
    } else {
      Vector<Acc, kWidth> sum = term;
      if (!first) {
        const auto before = load<kWidth>(share + v * kWidth);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum[i] += before[i];
      }
      store(share + v * kWidth, sum);
    }
  }
  // share (cols) = the sums of the rows side by side.
  __device__ void finish(Acc* share, int cols, Acc* scratch) const {
    const int columns = blockDim.x * kWidth;  // of a slot
#pragma unroll
    for (int slot = 0; slot < kHeld; ++slot) {
      BlockColumns<Acc, kWidth>::sum(held_[slot], share + slot * columns, cols - slot * columns, scratch);
    }
  }

 private:
  Vector<Acc, kWidth> held_[kHeld] = {};
};

// Block b takes rows [b * chunk, (b + 1) * chunk) and leaves its share of dweight and dbias at workspace
// (chunks, 2, cols).
template <class T, int kWidth>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_backward_kernel(NormBackwardParams p, bool centered, std::int64_t chunk) {
  using Acc = accumulate_t<T>;
  constexpr int kHeld = kHeldVectors<kWidth>;
  __shared__ Acc scratch[2 * kWarpSize];
  extern __shared__ __align__(16) unsigned char gradient_memory[];
  const Rows<const T> douts(p.dout), dsums(p.dsum), xs(p.s);
  const Rows<T> dxs(p.dx);
  const int vectors = static_cast<int>(p.cols) / kWidth;
  const Acc per_col = Acc(1) / static_cast<Acc>(p.cols);
  const HeldWeights<T, kWidth, kHeld> weight(p.weight, Acc(1), vectors);
  WeightGradient<Acc, kWidth, kHeld> dweight, dbias;
  Acc* share = static_cast<Acc*>(p.workspace) + std::int64_t{blockIdx.x} * 2 * p.cols;
  const std::int64_t begin = blockIdx.x * chunk, end = min(p.rows, begin + chunk);
  for (std::int64_t first = begin; first < end; first += blockDim.y) {
    const std::int64_t r = first + threadIdx.y;
    const int own = r < end ? vectors : 0;
    const T *dout = douts.row(r), *x = xs.row(r);
    HeldRow<T, kWidth, kHeld> gs, ss;
    gs.load(dout, own);
    ss.load(x, own);
    const Acc mean = centered && own > 0 ? static_cast<const Acc*>(p.mean)[r] : Acc(0);
    const Acc rstd = own > 0 ? static_cast<const Acc*>(p.rstd)[r] : Acc(0);
    Acc sums[2] = {};  // of g and of g * xhat
    for_each_vector<kHeld>(own, [&](int slot, int v) {
      const auto d = gs.at(dout, slot, v), w = weight.at(slot, v);
      auto xhat = ss.at(x, slot, v);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        xhat[i] = (xhat[i] - mean) * rstd;
        sums[0] += d[i] * w[i];
        sums[1] += d[i] * w[i] * xhat[i];
        xhat[i] *= d[i];
      }
      if (p.dweight.data != nullptr) dweight.add(slot, v, xhat, share, first == begin);
      if (p.dbias.data != nullptr) dbias.add(slot, v, d, share + p.cols, first == begin);
    });
    if (p.dx.data == nullptr) continue;
    row_reduce<Sum>(sums, scratch);
    const Acc mean_g = centered ? sums[0] * per_col : Acc(0), mean_gx = sums[1] * per_col;
    for_each_vector<kHeld>(own, [&](int slot, int v) {
      auto dx = gs.at(dout, slot, v);
      const auto w = weight.at(slot, v), s = ss.at(x, slot, v);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        dx[i] = rstd * (dx[i] * w[i] - mean_g - (s[i] - mean) * rstd * mean_gx);
      }
      if (dsums) {
        const auto more = convert_vector<Acc>(load<kWidth>(dsums.row(r) + v * kWidth));
#pragma unroll
        for (int i = 0; i < kWidth; ++i) dx[i] += more[i];
      }
      store(dxs.row(r) + v * kWidth, convert_vector<T>(dx));
    });
  }
  Acc* gradient_scratch = reinterpret_cast<Acc*>(gradient_memory);
  if (p.dweight.data != nullptr) dweight.finish(share, static_cast<int>(p.cols), gradient_scratch);
  if (p.dbias.data != nullptr) dbias.finish(share + p.cols, static_cast<int>(p.cols), gradient_scratch);
}

void check_sizes(std::int64_t cols) {
  ERGON_CHECK(cols < std::int64_t{1} << 30, "[norm] rows of {} elements on cuda: expected fewer than 2^30",
              cols);
}

bool vector_aligned(const RowMatrix& weights) {
  return weights.data == nullptr || aligned_to(weights.data, 16);
}

// Calls f(type, width) with the vector width that the rows allow.
template <class F>
void dispatch_width(DType dtype, bool in_vectors, F&& f) {
  dispatch_floating(dtype, "norm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (in_vectors) {
      f(tag, std::integral_constant<int, kVectorWidth<T>>{});
    } else {
      f(tag, std::integral_constant<int, 1>{});
    }
  });
}

void forward(const NormForwardParams& p, bool centered) {
  check_sizes(p.cols);
  if (p.rows == 0) return;
  const bool in_vectors = rows_in_vectors(p.cols, size_of(p.x.dtype), {p.x, p.residual, p.sum, p.y})
                          && vector_aligned(p.weight) && vector_aligned(p.bias);
  dispatch_width(p.x.dtype, in_vectors, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int kWidth = decltype(width)::value;
    const dim3 block = row_block(p.cols / kWidth, kHeldVectors<kWidth>);
    const int blocks = grid_stride_blocks(p.rows, block.y, static_cast<int>(block.x * block.y), 1);
    norm_forward_kernel<T, kWidth><<<blocks, block, 0, stream()>>>(p, centered);
    CUDA_CHECK_LAUNCH();
  });
}

void backward(const NormBackwardParams& p, bool centered) {
  check_sizes(p.cols);
  const std::int64_t chunk = norm_backward_chunk_rows(p.rows, kNormBackwardChunks);
  const std::int64_t chunks = (p.rows + chunk - 1) / chunk;
  const bool in_vectors =
      rows_in_vectors(p.cols, size_of(p.s.dtype), {p.dout, p.dsum, p.s, p.dx}) && vector_aligned(p.weight);
  if (chunks > 0) {
    dispatch_width(p.s.dtype, in_vectors, [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      using Acc = accumulate_t<T>;
      constexpr int kWidth = decltype(width)::value, kHeld = kHeldVectors<kWidth>;
      const dim3 block = row_block(p.cols / kWidth, kHeld);
      const std::size_t shared =
          BlockColumns<Acc, kWidth>::scratch_size(static_cast<int>(block.x * block.y)) * sizeof(Acc);
      norm_backward_kernel<T, kWidth>
          <<<static_cast<unsigned>(chunks), block, shared, stream()>>>(p, centered, chunk);
      CUDA_CHECK_LAUNCH();
    });
  }
  const std::int64_t size = p.s.dtype == DType::f64 ? 8 : 4;
  for (const RowMatrix* gradient : {&p.dweight, &p.dbias}) {
    if (gradient->data == nullptr) continue;
    const char* partials = static_cast<const char*>(p.workspace) + (gradient == &p.dbias ? p.cols * size : 0);
    sum_partials(partials, chunks, 2 * p.cols, p.cols, *gradient);
  }
}

}  // namespace

void layer_norm_forward(const NormForwardParams& params) { forward(params, true); }
void layer_norm_backward(const NormBackwardParams& params) { backward(params, true); }
void rms_norm_forward(const NormForwardParams& params) { forward(params, false); }
void rms_norm_backward(const NormBackwardParams& params) { backward(params, false); }

}  // namespace ergon::kernels::cuda
