#include <algorithm>

#include "core/cuda/strided.cuh"
#include "core/cuda/vector.cuh"
#include "kernels/batch_norm.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/reduce.cuh"

namespace ergon::kernels::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;
constexpr int kPiece = 16384;  // elements of a channel that a block works on
constexpr int kGroup = 4;      // vectors that a thread has under way at a time

std::int64_t pieces_of(std::int64_t batch, std::int64_t positions) {
  return std::max<std::int64_t>((batch * positions + kPiece - 1) / kPiece, 1);
}

// Where the elements of a block's piece of a channel are, in vectors: block i has piece i % pieces of
// channel i / pieces.
struct Pieces {
  std::uint32_t pieces = 1, vectors = 0;  // of a channel
  std::uint32_t piece = 0;                // vectors of a piece
  FastDivisor plane;                      // vectors of a plane
  std::int64_t plane_step = 0;            // elements from a channel's plane to its next
  int width = 1;

  __device__ __forceinline__ std::uint32_t channel() const { return blockIdx.x / pieces; }
  __device__ __forceinline__ std::uint32_t begin() const { return blockIdx.x % pieces * piece; }
  __device__ __forceinline__ std::uint32_t end() const { return min(begin() + piece, vectors); }
  __device__ __forceinline__ std::int64_t offset(std::uint32_t vector) const {
    const std::uint32_t image = plane.divide(vector), rest = vector - image * plane.divisor;
    return image * plane_step + (std::int64_t{channel()} * plane.divisor + rest) * width;
  }
  // Elements of a piece, and of a channel.
  __device__ __forceinline__ double count(std::uint32_t i) const {
    return static_cast<double>(min(piece, vectors - i * piece)) * width;
  }
  __device__ __forceinline__ double count() const { return static_cast<double>(vectors) * width; }
};

// Calls f(k, offset) for the thread's next up to kGroup vectors from `first` on.
template <class F>
__device__ __forceinline__ void for_group(const Pieces& pieces, std::uint32_t first, const F& f) {
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const std::uint32_t vector = first + k * kThreads;
    if (vector < pieces.end()) f(k, pieces.offset(vector));
  }
}

// Adds up what all lanes of the first warp have, then tells all threads of the block.
__device__ __forceinline__ double broadcast_sum(double value, double* shared) {
  if (threadIdx.x < kWarpSize) {
    value = warp_reduce<Sum>(value);
    if (threadIdx.x == 0) *shared = value;
  }
  __syncthreads();
  return *shared;
}

template <class A>
struct Moments {
  A count = 0, mean = 0, square_sum = 0;  // of the differences to the mean

  __device__ __forceinline__ void merge(const Moments& other) {
    const A total = count + other.count;
    if (total == A(0)) return;
    const A share = other.count / total, difference = other.mean - mean;
    mean += difference * share;
    square_sum += other.square_sum + difference * difference * (count * share);
    count = total;
  }
};

// moments[2 i], moments[2 i + 1]: mean and sum of squared differences of block i's piece.
template <int kWidth, class T>
__global__ void __launch_bounds__(kThreads)
    batch_norm_moments_kernel(Pieces pieces, const T* x, accumulate_t<T>* moments) {
  using A = accumulate_t<T>;
  __shared__ A scratch[2][kThreads / kWarpSize];
  Moments<A> mine;
  for (std::uint32_t first = pieces.begin() + threadIdx.x; first < pieces.end(); first += kGroup * kThreads) {
    Vector<A, kWidth> group[kGroup];
    int vectors = 0;
    for_group(pieces, first, [&](int k, std::int64_t offset) {
      group[k] = convert_vector<A>(load<kWidth>(x + offset));
      vectors = k + 1;
    });
    Moments<A> of_group{.count = static_cast<A>(vectors * kWidth)};
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (k < vectors) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) of_group.mean += group[k][i];
      }
    }
    of_group.mean /= of_group.count;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (k < vectors) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const A difference = group[k][i] - of_group.mean;
          of_group.square_sum += difference * difference;
        }
      }
    }
    mine.merge(of_group);
  }
  const A count = static_cast<A>((pieces.end() - pieces.begin()) * kWidth);
  const A sum = block_reduce<Sum, kThreads>(mine.mean * mine.count, scratch[0]);
  const A mean = count == A(0) ? A(0) : sum / count, difference = mine.mean - mean;
  const A square_sum =
      block_reduce<Sum, kThreads>(mine.square_sum + mine.count * difference * difference, scratch[1]);
  if (threadIdx.x == 0) {
    moments[2 * blockIdx.x] = mean;
    moments[2 * blockIdx.x + 1] = square_sum;
  }
}

template <class A>
struct ForwardVectors {
  const A *weight, *bias;
  A *mean, *var, *rstd, *running_mean, *running_var;
  const A* moments;  // null: without batch statistics
  double eps, momentum;
};

template <class A>
__device__ __forceinline__ void move_towards(A* running, std::uint32_t c, double batch, double momentum) {
  if (running == nullptr) return;
  const double value = running[c];
  running[c] = static_cast<A>(value + momentum * (batch - value));
}

template <int kWidth, class T>
__global__ void __launch_bounds__(kThreads)
    batch_norm_apply_kernel(Pieces pieces, ForwardVectors<accumulate_t<T>> v, const T* x, T* y) {
  using A = accumulate_t<T>;
  const std::uint32_t c = pieces.channel();
  const bool first_piece = pieces.begin() == 0;
  A mean, var;
  if (v.moments != nullptr) {
    __shared__ double shared[2];
    const A* moments = v.moments + std::int64_t{2} * c * pieces.pieces;
    double sum = 0, square_sum = 0;
    if (threadIdx.x < kWarpSize) {
      for (std::uint32_t i = threadIdx.x; i < pieces.pieces; i += kWarpSize) {
        sum += pieces.count(i) * static_cast<double>(moments[2 * i]);
      }
    }
    const double mean64 = broadcast_sum(sum, &shared[0]) / pieces.count();
    if (threadIdx.x < kWarpSize) {
      for (std::uint32_t i = threadIdx.x; i < pieces.pieces; i += kWarpSize) {
        const double difference = static_cast<double>(moments[2 * i]) - mean64;
        square_sum += static_cast<double>(moments[2 * i + 1]) + pieces.count(i) * difference * difference;
      }
    }
    const double total = broadcast_sum(square_sum, &shared[1]);
    mean = static_cast<A>(mean64);
    var = static_cast<A>(total / pieces.count());
    if (first_piece && threadIdx.x == 0) {
      v.mean[c] = mean;
      v.var[c] = var;
      move_towards(v.running_mean, c, mean64, v.momentum);
      move_towards(v.running_var, c, total / (pieces.count() - 1), v.momentum);
    }
  } else {
    mean = v.mean[c];
    var = v.var[c];
  }
  const A rstd = A(1) / sqrt(var + static_cast<A>(v.eps));
  if (first_piece && threadIdx.x == 0) v.rstd[c] = rstd;
  const A scale = v.weight == nullptr ? rstd : rstd * v.weight[c];
  const A shift = v.bias == nullptr ? A(0) : v.bias[c];
  for (std::uint32_t first = pieces.begin() + threadIdx.x; first < pieces.end(); first += kGroup * kThreads) {
    Vector<T, kWidth> group[kGroup];
    for_group(pieces, first, [&](int k, std::int64_t offset) { group[k] = load<kWidth>(x + offset); });
    for_group(pieces, first, [&](int k, std::int64_t offset) {
      Vector<A, kWidth> values = convert_vector<A>(group[k]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] = (values[i] - mean) * scale + shift;
      store(y + offset, convert_vector<T>(values));
    });
  }
}

template <class A>
struct BackwardVectors {
  const A *weight, *mean, *rstd;
  A *dweight, *dbias;
  A* sums;  // 2 i, 2 i + 1: of dout and of dout * xhat over block i's piece
  bool batch_statistics;
};

template <int kWidth, class T>
__global__ void __launch_bounds__(kThreads)
    batch_norm_sums_kernel(Pieces pieces, BackwardVectors<accumulate_t<T>> v, const T* dout, const T* x) {
  using A = accumulate_t<T>;
  __shared__ A scratch[2][kThreads / kWarpSize];
  const A mean = v.mean[pieces.channel()], rstd = v.rstd[pieces.channel()];
  A sum = 0, products = 0;
  for (std::uint32_t first = pieces.begin() + threadIdx.x; first < pieces.end(); first += kGroup * kThreads) {
    Vector<T, kWidth> douts[kGroup], xs[kGroup];
    for_group(pieces, first, [&](int k, std::int64_t offset) {
      douts[k] = load<kWidth>(dout + offset);
      xs[k] = load<kWidth>(x + offset);
    });
    A group_sum = 0, group_products = 0;
    for_group(pieces, first, [&](int k, std::int64_t) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const A value = convert<A>(douts[k][i]);
        group_sum += value;
        group_products += value * ((convert<A>(xs[k][i]) - mean) * rstd);
      }
    });
    sum += group_sum;
    products += group_products;
  }
  sum = block_reduce<Sum, kThreads>(sum, scratch[0]);
  products = block_reduce<Sum, kThreads>(products, scratch[1]);
  if (threadIdx.x == 0) {
    v.sums[2 * blockIdx.x] = sum;
    v.sums[2 * blockIdx.x + 1] = products;
  }
}

// Also launched with dx null, a block a channel, for dweight and dbias.
template <int kWidth, class T>
__global__ void __launch_bounds__(kThreads)
    batch_norm_grad_kernel(Pieces pieces, BackwardVectors<accumulate_t<T>> v, const T* dout, const T* x,
                           T* dx) {
  using A = accumulate_t<T>;
  __shared__ double shared[2];
  const std::uint32_t c = dx == nullptr ? blockIdx.x : pieces.channel();
  const A* sums = v.sums + std::int64_t{2} * c * pieces.pieces;
  double dout_sum = 0, product_sum = 0;
  if (threadIdx.x < kWarpSize) {
    for (std::uint32_t i = threadIdx.x; i < pieces.pieces; i += kWarpSize) {
      dout_sum += static_cast<double>(sums[2 * i]);
      product_sum += static_cast<double>(sums[2 * i + 1]);
    }
  }
  dout_sum = broadcast_sum(dout_sum, &shared[0]);
  product_sum = broadcast_sum(product_sum, &shared[1]);
  if (threadIdx.x == 0 && (dx == nullptr || pieces.begin() == 0)) {
    v.dbias[c] = static_cast<A>(dout_sum);
    v.dweight[c] = static_cast<A>(product_sum);
  }
  if (dx == nullptr) return;
  const A mean = v.mean[c], rstd = v.rstd[c];
  const A mean_dout = v.batch_statistics ? static_cast<A>(dout_sum / pieces.count()) : A(0);
  const A mean_product = v.batch_statistics ? static_cast<A>(product_sum / pieces.count()) : A(0);
  const A scale = v.weight == nullptr ? rstd : rstd * v.weight[c], slope = rstd * mean_product;
  for (std::uint32_t first = pieces.begin() + threadIdx.x; first < pieces.end(); first += kGroup * kThreads) {
    Vector<T, kWidth> douts[kGroup], xs[kGroup];
    for_group(pieces, first, [&](int k, std::int64_t offset) {
      douts[k] = load<kWidth>(dout + offset);
      xs[k] = load<kWidth>(x + offset);
    });
    for_group(pieces, first, [&](int k, std::int64_t offset) {
      Vector<A, kWidth> values;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[i] = scale * (convert<A>(douts[k][i]) - mean_dout - (convert<A>(xs[k][i]) - mean) * slope);
      }
      store(dx + offset, convert_vector<T>(values));
    });
  }
}

// --- on the host ---

template <class Params>
Pieces pieces_of(const Params& p, int width) {
  const std::int64_t elements = p.batch * p.positions, pieces = pieces_of(p.batch, p.positions);
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  ERGON_CHECK(elements < kLimit && pieces * p.channels < kLimit,
              "[batch_norm2d] ({}, {}, {}) on cuda: expected fewer than 2^31 elements a channel", p.batch,
              p.channels, p.positions);
  return {.pieces = static_cast<std::uint32_t>(pieces),
          .vectors = static_cast<std::uint32_t>(elements / width),
          .piece = static_cast<std::uint32_t>(kPiece / width),
          .plane = FastDivisor(std::max<std::int64_t>(p.positions / width, 1)),
          .plane_step = p.channels * p.positions,
          .width = width};
}

// Calls launch(TypeTag<T>{}, width constant, pieces, blocks).
template <class Params, class F>
void dispatch(const Params& p, std::initializer_list<const void*> tensors, const F& launch) {
  if (p.channels == 0) return;
  dispatch_floating(p.dtype, "batch_norm2d", [&](auto tag) {
    constexpr int kWidth = kVectorWidth<typename decltype(tag)::type>;
    const bool fits =
        p.positions % kWidth == 0
        && std::all_of(tensors.begin(), tensors.end(), [](const void* t) { return aligned_to(t, 16); });
    const Pieces pieces = pieces_of(p, fits ? kWidth : 1);
    const unsigned blocks = pieces.pieces * static_cast<unsigned>(p.channels);
    if (fits) {
      launch(tag, std::integral_constant<int, kWidth>{}, pieces, blocks);
    } else {
      launch(tag, std::integral_constant<int, 1>{}, pieces, blocks);
    }
  });
}

}  // namespace

std::int64_t batch_norm_workspace(std::int64_t batch, std::int64_t channels, std::int64_t positions) {
  return 2 * channels * pieces_of(batch, positions);
}

void batch_norm_forward(const BatchNormForward& p) {
  dispatch(p, {p.x, p.y}, [&](auto tag, auto width, const Pieces& pieces, unsigned blocks) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kWidth = decltype(width)::value;
    const T* x = static_cast<const T*>(p.x);
    A* moments = p.batch_statistics ? static_cast<A*>(p.workspace) : nullptr;
    if (p.batch_statistics) {
      batch_norm_moments_kernel<kWidth><<<blocks, kThreads, 0, stream()>>>(pieces, x, moments);
      CUDA_CHECK_LAUNCH();
    }
    const ForwardVectors<A> vectors{.weight = static_cast<const A*>(p.weight),
                                    .bias = static_cast<const A*>(p.bias),
                                    .mean = static_cast<A*>(p.mean),
                                    .var = static_cast<A*>(p.var),
                                    .rstd = static_cast<A*>(p.rstd),
                                    .running_mean = static_cast<A*>(p.running_mean),
                                    .running_var = static_cast<A*>(p.running_var),
                                    .moments = moments,
                                    .eps = p.eps,
                                    .momentum = p.momentum};
    batch_norm_apply_kernel<kWidth>
        <<<blocks, kThreads, 0, stream()>>>(pieces, vectors, x, static_cast<T*>(p.y));
    CUDA_CHECK_LAUNCH();
  });
}

void batch_norm_backward(const BatchNormBackward& p) {
  dispatch(p, {p.dout, p.x, p.dx}, [&](auto tag, auto width, const Pieces& pieces, unsigned blocks) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kWidth = decltype(width)::value;
    const T *dout = static_cast<const T*>(p.dout), *x = static_cast<const T*>(p.x);
    T* dx = static_cast<T*>(p.dx);
    const BackwardVectors<A> vectors{.weight = static_cast<const A*>(p.weight),
                                     .mean = static_cast<const A*>(p.mean),
                                     .rstd = static_cast<const A*>(p.rstd),
                                     .dweight = static_cast<A*>(p.dweight),
                                     .dbias = static_cast<A*>(p.dbias),
                                     .sums = static_cast<A*>(p.workspace),
                                     .batch_statistics = p.batch_statistics};
    batch_norm_sums_kernel<kWidth><<<blocks, kThreads, 0, stream()>>>(pieces, vectors, dout, x);
    CUDA_CHECK_LAUNCH();
    const unsigned grad_blocks = dx == nullptr ? static_cast<unsigned>(p.channels) : blocks;
    batch_norm_grad_kernel<kWidth><<<grad_blocks, kThreads, 0, stream()>>>(pieces, vectors, dout, x, dx);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace ergon::kernels::cuda
