// What the kernels that work on rows move, by the simulated GPU's counters: on aligned shapes the bytes of
// the contract's formula, in full sectors, and shared memory without bank conflicts.

#include <array>

#include <gtest/gtest.h>

#include "core/stream.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"
#include "kernels/norm.h"
#include "kernels/rotary_embedding.h"
#include "kernels/softmax.h"
#include "kernels/swiglu.h"
#include "simgpu/simgpu.h"
#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

using namespace ergon::test;

const Device kCuda = Device::cuda();
constexpr DType kDtypes[] = {DType::f32, DType::bf16};

Tensor random(const Shape& shape, DType dtype, std::uint64_t seed = 1) {
  return uniform(shape, {.dtype = dtype, .seed = seed}).to(kCuda);
}
Tensor output(const Shape& shape, DType dtype = DType::f32) { return poisoned(shape, dtype).to(kCuda); }
RowMatrix matrix(const Tensor& t) { return {t.data_ptr(), t.dtype(), t.stride(0)}; }
RowMatrix vector(const Tensor& t) { return {t.data_ptr(), t.dtype(), 0}; }

std::vector<simgpu::LaunchRecord> launches_of(const std::function<void()>& run) {
  synchronize(kCuda);
  simgpu::clear_launches();
  run();
  synchronize(kCuda);
  for (const simgpu::LaunchRecord& launch : simgpu::launches()) {
    EXPECT_EQ(launch.counters.shared_wavefronts, launch.counters.shared_ideal_wavefronts)
        << "bank conflicts of " << launch.kernel;
  }
  return {simgpu::launches().begin(), simgpu::launches().end()};
}

// Bytes in full sectors, and requests for single numbers: a sector each.
struct Traffic {
  std::int64_t bytes = 0;
  std::int64_t singles = 0;
};
void expect_traffic(const simgpu::LaunchRecord& launch, const Traffic& loads, const Traffic& stores) {
  const auto sectors = [](const Traffic& traffic) {
    EXPECT_EQ(traffic.bytes % 32, 0);
    return static_cast<std::uint64_t>(traffic.bytes / 32 + traffic.singles);
  };
  EXPECT_EQ(launch.counters.global_load_sectors, sectors(loads)) << launch.kernel;
  EXPECT_EQ(launch.counters.global_store_sectors, sectors(stores)) << launch.kernel;
}

constexpr std::int64_t kRows = 64, kCols = 512;
constexpr std::int64_t kMatrix = kRows * kCols;

// Warps that share a row, as row_block() of kernels/cuda/common/row_group.cuh makes them for `held` vectors.
std::int64_t warps_of_row(std::int64_t cols, DType dtype, std::int64_t held) {
  return std::max<std::int64_t>(1, cols * size_of(dtype) / 16 / (32 * held));
}

TEST(RowsCounters, NormForwardReadsAndWritesARowOnce) {
  for (const DType dtype : kDtypes) {
    for (const bool add : {false, true}) {
      const std::int64_t size = size_of(dtype);
      const Tensor x = random({kRows, kCols}, dtype), residual = random({kRows, kCols}, dtype, 2),
                   weight = random({kCols}, dtype, 3), bias = random({kCols}, dtype, 4);
      const Tensor y = output(x.shape(), dtype), sum = output(x.shape(), dtype), mean = output({kRows}),
                   rstd = output({kRows});
      NormForwardParams params{.rows = kRows,
                               .cols = kCols,
                               .x = matrix(x),
                               .weight = vector(weight),
                               .bias = vector(bias),
                               .y = matrix(y),
                               .mean = mean.data_ptr(),
                               .rstd = rstd.data_ptr()};
      if (add) params.residual = matrix(residual), params.sum = matrix(sum);
      const auto launches = launches_of([&] { cuda::layer_norm_forward(params); });
      ASSERT_EQ(launches.size(), 1u);
      const std::int64_t at_a_time = launches[0].grid.x * launches[0].block.y;
      expect_traffic(launches[0], {(add ? 2 : 1) * kMatrix * size + at_a_time * 2 * kCols * size},
                     {(add ? 2 : 1) * kMatrix * size, 2 * kRows});
    }
  }
}

TEST(RowsCounters, NormBackwardIsOnePass) {
  for (const DType dtype : kDtypes) {
    const std::int64_t size = size_of(dtype), chunks = kRows / 16;
    const std::int64_t warps = warps_of_row(kCols, dtype, dtype == DType::f32 ? 4 : 2);
    const Tensor dout = random({kRows, kCols}, dtype), s = random({kRows, kCols}, dtype, 2),
                 weight = random({kCols}, dtype, 3), mean = random({kRows}, DType::f32),
                 rstd = random({kRows}, DType::f32);
    const Tensor dx = output(s.shape(), dtype), dweight = output({kCols}, dtype),
                 dbias = output({kCols}, dtype),
                 workspace = output({norm_backward_workspace(kRows, kCols, cuda::kNormBackwardChunks)});
    EXPECT_EQ(workspace.numel(), chunks * 2 * kCols);
    const auto launches = launches_of([&] {
      cuda::layer_norm_backward({.rows = kRows,
                                 .cols = kCols,
                                 .dout = matrix(dout),
                                 .s = matrix(s),
                                 .weight = vector(weight),
                                 .mean = mean.data_ptr(),
                                 .rstd = rstd.data_ptr(),
                                 .dx = matrix(dx),
                                 .dweight = vector(dweight),
                                 .dbias = vector(dbias),
                                 .workspace = workspace.data_ptr()});
    });
    ASSERT_EQ(launches.size(), 3u);
    const std::int64_t at_a_time = launches[0].grid.x * launches[0].block.y;
    expect_traffic(launches[0], {2 * kMatrix * size + at_a_time * kCols * size, 2 * kRows * warps},
                   {kMatrix * size + workspace.nbytes()});
    for (const std::size_t sum : {1u, 2u}) {
      expect_traffic(launches[sum], {workspace.nbytes() / 2}, {kCols * size});
    }
  }
}

TEST(RowsCounters, SoftmaxReadsAndWritesOnceAlongAnyDimension) {
  for (const DType dtype : kDtypes) {
    for (const SoftmaxShape& shape : {SoftmaxShape{kRows, kCols, 1}, SoftmaxShape{4, 32, 64}}) {
      const std::int64_t numel = shape.outer * shape.length * shape.inner;
      const Tensor x = random({numel}, dtype), dy = random({numel}, dtype, 2), y = output({numel}, dtype),
                   dx = output({numel}, dtype);
      for (const SoftmaxForm form : {SoftmaxForm::softmax, SoftmaxForm::log_softmax}) {
        const auto launches = launches_of([&] {
          cuda::softmax(form, dtype, x.data_ptr(), y.data_ptr(), shape);
          cuda::softmax_backward(form, dtype, y.data_ptr(), dy.data_ptr(), dx.data_ptr(), shape);
        });
        ASSERT_EQ(launches.size(), 2u);
        expect_traffic(launches[0], {x.nbytes()}, {y.nbytes()});
        expect_traffic(launches[1], {2 * x.nbytes()}, {dx.nbytes()});
      }
    }
  }
}

TEST(RowsCounters, CrossEntropyReadsTheLogitsOnceForEachDirection) {
  constexpr std::int64_t kPositions = 8, kClasses = 4096;
  for (const DType dtype : kDtypes) {
    const std::int64_t warps = warps_of_row(kClasses, dtype, 4);
    const Tensor logits = random({kPositions, kClasses}, dtype), dlogits = output(logits.shape(), dtype);
    const Tensor targets = arange(0, kPositions, 1, {DType::i64}).to(kCuda);
    const Tensor lse = output({kPositions}), loss = output({kPositions}), dloss = random({}, DType::f32);
    const CrossEntropyParams params{.rows = kPositions,
                                    .cols = kClasses,
                                    .logits = matrix(logits),
                                    .targets = targets.data_ptr(),
                                    .lse = lse.data_ptr(),
                                    .loss = loss.data_ptr(),
                                    .dloss = dloss.data_ptr(),
                                    .weight = dloss.data_ptr(),
                                    .dlogits = matrix(dlogits)};
    const auto launches = launches_of([&] {
      cuda::cross_entropy_forward(params);
      cuda::cross_entropy_backward(params);
    });
    ASSERT_EQ(launches.size(), 2u);
    // Singles: each warp's target, and the target's logit; each warp's target, lse, weight and dloss.
    expect_traffic(launches[0], {logits.nbytes(), kPositions * (warps + 1)}, {0, 2 * kPositions});
    expect_traffic(launches[1], {logits.nbytes(), kPositions * warps * 4}, {dlogits.nbytes()});
  }
}

TEST(RowsCounters, EmbeddingMovesRowsInFullSectors) {
  constexpr std::int64_t kVocab = 40, kCount = 96;
  for (const DType dtype : kDtypes) {
    const std::int64_t size = size_of(dtype), tiles = kCols * size / 512;  // of 32 vectors
    const Tensor weight = random({kVocab, kCols}, dtype), y = output({kCount, kCols}, dtype),
                 dweight = output({kVocab, kCols}, dtype);
    const Tensor indices = integers({kCount}, {.dtype = DType::i64, .low = 0, .high = kVocab}).to(kCuda);
    const Tensor workspace = empty({embedding_backward_workspace(kVocab, kCount)}, {DType::i64, kCuda});
    const EmbeddingParams params{
        .vocab = kVocab, .cols = kCols, .count = kCount, .indices = indices.data_ptr()};
    auto launches = launches_of([&] { cuda::embedding_forward(params, matrix(weight), matrix(y)); });
    ASSERT_EQ(launches.size(), 1u);
    expect_traffic(launches[0], {y.nbytes(), kCount}, {y.nbytes()});

    // The sort scatters by what the indices are: only the summation is as regular as its formula.
    synchronize(kCuda);
    simgpu::clear_launches();
    cuda::embedding_backward(params, matrix(y), matrix(dweight),
                             static_cast<std::int64_t*>(workspace.data_ptr()));
    synchronize(kCuda);
    expect_traffic(simgpu::launches().back(), {y.nbytes(), tiles * (2 * kVocab + kCount)},
                   {dweight.nbytes()});
  }
}

TEST(RowsCounters, SwigluAndDropoutMoveEachElementOnce) {
  for (const DType dtype : kDtypes) {
    const Tensor gate = random({kRows, kCols}, dtype), up = random({kRows, kCols}, dtype, 2),
                 dout = random({kRows, kCols}, dtype, 3);
    const Tensor y = output(gate.shape(), dtype), dgate = output(gate.shape(), dtype),
                 dup = output(gate.shape(), dtype);
    const SwigluParams params{.rows = kRows,
                              .cols = kCols,
                              .gate = matrix(gate),
                              .up = matrix(up),
                              .y = matrix(y),
                              .dout = matrix(dout),
                              .dgate = matrix(dgate),
                              .dup = matrix(dup)};
    const auto launches = launches_of([&] {
      cuda::swiglu_forward(params);
      cuda::swiglu_backward(params);
      cuda::dropout({.numel = kMatrix,
                     .dtype = dtype,
                     .x = gate.data_ptr(),
                     .y = y.data_ptr(),
                     .p = 0.5,
                     .stream = {}});
    });
    ASSERT_EQ(launches.size(), 3u);
    expect_traffic(launches[0], {2 * y.nbytes()}, {y.nbytes()});
    expect_traffic(launches[1], {3 * y.nbytes()}, {2 * y.nbytes()});
    expect_traffic(launches[2], {y.nbytes()}, {y.nbytes()});
  }
}

TEST(RowsCounters, RotaryEmbeddingReadsTheTableOnceForAllHeads) {
  constexpr std::int64_t kBatch = 2, kSeqlen = 8, kHeads = 4, kDim = 64;
  const Tensor table = random({kSeqlen, 2, kDim / 2}, DType::f32);
  for (const DType dtype : kDtypes) {
    for (const bool interleaved : {false, true}) {
      const Tensor x = random({kBatch, kSeqlen, kHeads, kDim}, dtype), y = output(x.shape(), dtype);
      const auto launches = launches_of([&] {
        cuda::rotary_embedding({.batch = kBatch,
                                .seqlen = kSeqlen,
                                .num_heads = kHeads,
                                .head_dim = kDim,
                                .dtype = dtype,
                                .x = x.data_ptr(),
                                .batch_stride = x.stride(0),
                                .seqlen_stride = x.stride(1),
                                .head_stride = x.stride(2),
                                .y = y.data_ptr(),
                                .table = table.data_ptr(),
                                .interleaved = interleaved});
      });
      ASSERT_EQ(launches.size(), 1u);
      expect_traffic(launches[0], {x.nbytes() + kBatch * table.nbytes()}, {y.nbytes()});
    }
  }
}

TEST(RowsCounters, BiasAndActivationGradientsAreOnePass) {
  for (const DType dtype : kDtypes) {
    const std::int64_t chunks = kRows / 32;
    const Tensor dout = random({kRows, kCols}, dtype), pre = random({kRows, kCols}, dtype, 2);
    const Tensor dpre = output(pre.shape(), dtype), dbias = output({kCols}, dtype),
                 workspace = output({bias_gradient_workspace(kRows, kCols)});
    EXPECT_EQ(workspace.numel(), chunks * kCols);
    const auto launches = launches_of([&] {
      cuda::bias_activation_backward({.dtype = dtype,
                                      .activation = Activation::gelu_tanh,
                                      .rows = kRows,
                                      .cols = kCols,
                                      .dout = dout.data_ptr(),
                                      .pre = pre.data_ptr(),
                                      .dpre = dpre.data_ptr(),
                                      .dbias = dbias.data_ptr(),
                                      .dbias_dtype = dtype,
                                      .workspace = workspace.data_ptr()});
    });
    ASSERT_EQ(launches.size(), 2u);
    expect_traffic(launches[0], {2 * dout.nbytes()}, {dpre.nbytes() + workspace.nbytes()});
    expect_traffic(launches[1], {workspace.nbytes()}, {dbias.nbytes()});
  }
}

}  // namespace
}  // namespace ergon::kernels
