// The matrix product on CUDA, through its contract.

#include "kernels/gemm.h"

#include <cuda_runtime_api.h>

#include "core/cuda/check.h"
#include "core/tensor.h"
#include "kernels/cuda/gemm/autotune.h"
#include "kernels/cuda/gemm/plan.h"
#include "tests/kernels/gemm_fixture.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ergon::kernels {
namespace {

using test::kActivations;
using test::kAllLayouts;
using test::kNarrow;
using test::Layout;
using test::Matrices;
using test::Problem;

// The matrices' storage on the device while a product runs.
class OnDevice {
 public:
  explicit OnDevice(const std::vector<Matrices*>& matrices) : matrices_(matrices) {
    for (Matrices* m : matrices_) {
      const auto bytes = static_cast<std::int64_t>(m->storage().size());
      copies_.push_back(empty({bytes}, {.dtype = DType::u8, .device = Device::cuda()}));
      CUDA_CHECK(cudaMemcpy(copies_.back().data_ptr(), m->storage().data(), m->storage().size(),
                            cudaMemcpyHostToDevice));
    }
  }
  void bring_back() {
    for (std::size_t i = 0; i < matrices_.size(); ++i) {
      CUDA_CHECK(cudaMemcpy(matrices_[i]->storage().data(), copies_[i].data_ptr(),
                            matrices_[i]->storage().size(), cudaMemcpyDeviceToHost));
    }
  }
  template <class Pointer>
  Pointer there(Pointer here) const {
    const auto* address = static_cast<const std::byte*>(here);
    for (std::size_t i = 0; i < matrices_.size(); ++i) {
      const auto& storage = matrices_[i]->storage();
      if (address >= storage.data() && address < storage.data() + storage.size()) {
        return static_cast<std::byte*>(copies_[i].data_ptr()) + (address - storage.data());
      }
    }
    return nullptr;
  }
  GemmParams there(GemmParams params) const {
    params.a.data = there(params.a.data);
    params.b.data = there(params.b.data);
    params.c.data = there(params.c.data);
    params.bias = there(params.bias);
    params.pre_activation = there(params.pre_activation);
    params.residual = there(params.residual);
    return params;
  }

 private:
  std::vector<Matrices*> matrices_;
  std::vector<Tensor> copies_;
};

class CudaGemm : public test::GemmTest {
 protected:
  void multiply(const GemmParams& params, const std::vector<Matrices*>& matrices) override {
    OnDevice device(matrices);
    GemmParams there = device.there(params);
    const std::int64_t bytes = tile_ >= 0 ? 1 << 24 : workspace_ ? cuda::gemm_workspace(there) : 0;
    const Tensor workspace = empty({bytes}, {.dtype = DType::u8, .device = Device::cuda()});
    if (bytes > 0) there.workspace = workspace.data_ptr();
    if (tile_ < 0) {
      cuda::gemm(there);
    } else {
      const auto problem = cuda::gemm_detail::problem_of(there);
      cuda::gemm_detail::run(there, problem, {problem.arithmetic, tile_, splits_});
    }
    device.bring_back();
  }
  // Tensor cores may cut off what does not fit into a sum, instead of rounding.
  double unit(const Problem& p) const override { return p.a == DType::f64 ? 0x1p-53 : 0x1p-23; }
  double product_error(const Problem& p) const override {
    if (p.a != DType::f32 && p.b != DType::f32) return 0;
    return p.allow_tf32 ? 0x1p-9 : 0x1p-19;
  }

  int tile_ = -1, splits_ = 1;  // -1: as the plan says
  bool workspace_ = true;       // where it asks for some
};

// Every kernel: integers make the sums exact, whatever the order.
TEST_F(CudaGemm, WholeNumbersAreExactForEveryTileLayoutAndDtype) {
  for (tile_ = 0; tile_ < cuda::gemm_detail::kTileCount; ++tile_) {
    for (const Layout layout_a : {Layout::row_major, Layout::column_major}) {
      for (const Layout layout_b : {Layout::row_major, Layout::column_major}) {
        for (const DType dtype : kNarrow) {
          for (const bool allow_tf32 : {false, true}) {
            if (allow_tf32 && dtype != DType::f32) continue;
            if (tile_ < 2 && dtype == DType::f32 && !allow_tf32) continue;  // not built
            const cuda::gemm_detail::Tile& tile = cuda::gemm_detail::kTiles[tile_];
            Problem p{.M = tile.rows, .N = tile.cols - 24, .K = 40, .a = dtype, .b = dtype, .c = dtype};
            p.layout_a = layout_a, p.layout_b = layout_b, p.allow_tf32 = allow_tf32, p.first = 0;
            run(p);
            p.M += 8, p.N += 24, p.K = 232;  // a whole tile and an edge, and more steps than stages
            run(p);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(CudaGemm, AnySize) {
  for (const std::int64_t M : {1, 31, 65}) {
    for (const std::int64_t N : {1, 33, 65}) {
      for (const std::int64_t K : {1, 31, 33, 65}) {
        for (const DType dtype : kNarrow) run({.M = M, .N = N, .K = K, .a = dtype, .b = dtype, .c = dtype});
      }
    }
  }
}

// Rows that are no multiples of 16 bytes, elements apart from each other, in every combination.
TEST_F(CudaGemm, AnyLayout) {
  for (const Layout a : kAllLayouts) {
    for (const Layout b : kAllLayouts) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const Layout c = a == Layout::aliased ? Layout::row_major : a;
        Problem p{.M = 35, .N = 70, .K = 44, .a = dtype, .b = dtype, .c = dtype, .bias = dtype};
        p.layout_a = a, p.layout_b = b, p.layout_c = c, p.with_bias = true;
        run(p);
        p.first = 2;  // 4 bytes at a time
        run(p);
      }
    }
  }
}

TEST_F(CudaGemm, RealNumbersStayWithinTheErrorBound) {
  for (const Layout a : {Layout::row_major, Layout::column_major}) {
    for (const Layout b : {Layout::row_major, Layout::column_major}) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
        Problem p{.M = 65, .N = 80, .K = 300, .a = dtype, .b = dtype, .c = dtype, .bias = dtype};
        p.layout_a = a, p.layout_b = b, p.integers = false, p.alpha = 0.3, p.beta = -0.7, p.first = 0;
        run(p);
        if (dtype != DType::f32) continue;
        p.allow_tf32 = true;
        run(p);
      }
    }
  }
}

// The default for f32: what tf32 cuts off counts.
TEST_F(CudaGemm, Tf32OnlyWhereItIsAllowed) {
  Matrices a(DType::f32, 1, 1, 1, 1), b(DType::f32, 1, 1, 1, 1), c(DType::f32, 1, 1, 1, 1);
  a.set(0, 0, 0, 0, 1 + 0x1p-11);
  b.set(0, 0, 0, 0, 1);
  GemmParams params{.M = 1, .N = 1, .K = 1};
  params.a = a.operand<const void*>(), params.b = b.operand<const void*>(), params.c = c.operand<void*>();
  multiply(params, {&a, &b, &c});
  EXPECT_EQ(c.get(0, 0, 0, 0), 1 + 0x1p-11);
  params.allow_tf32 = true;
  multiply(params, {&a, &b, &c});
  EXPECT_EQ(c.get(0, 0, 0, 0), 1);
}

TEST_F(CudaGemm, NanAndInfinityReachTheirRowAndColumnOnly) {
  for (const DType dtype : kNarrow) {
    const Problem p{.M = 30, .N = 40, .K = 33, .a = dtype, .b = dtype};
    Matrices a(dtype, 1, 1, p.M, p.K), b(dtype, 1, 1, p.K, p.N), c(p.c, 1, 1, p.M, p.N);
    fill(a, p, p.M, p.K);
    fill(b, p, p.K, p.N);
    a.set(0, 0, 29, 32, NAN);
    b.set(0, 0, 0, 39, INFINITY);
    GemmParams params{.M = p.M, .N = p.N, .K = p.K};
    params.a = a.operand<const void*>(), params.b = b.operand<const void*>(), params.c = c.operand<void*>();
    multiply(params, {&a, &b, &c});
    for (int i = 0; i < p.M; ++i) {
      for (int j = 0; j < p.N; ++j) {
        EXPECT_EQ(std::isfinite(c.get(0, 0, i, j)), i != 29 && j != 39) << name_of(dtype) << i << ", " << j;
        if (i == 29) {
          EXPECT_TRUE(std::isnan(c.get(0, 0, i, j))) << j;
        }
      }
    }
  }
}

// Times a number, an infinity keeps what the product has in fp32, whatever the number's small part is; and
// the largest numbers do not become infinite. In every part of K, and beside sums that are finite.
TEST_F(CudaGemm, InfinitiesTimesNumbersOfAnyMantissa) {
  const float numbers[] = {1,      -3,       0x1.001p0f, 0x1.ffffp0f, -0x1.0018p20f, 0x1.fffffep120f,
                           1e-30f, INFINITY, 0};
  constexpr int kCount = static_cast<int>(std::size(numbers)), kDepth = 100, kRows = 3;
  for (const float special : {INFINITY, -INFINITY, 0x1.fffffep127f}) {
    for (tile_ = 2; tile_ < cuda::gemm_detail::kTileCount; ++tile_) {
      for (splits_ = 1; splits_ <= 2; ++splits_) {
        const int at = 3 + 45 * (tile_ - 2);
        Matrices a(DType::f32, 1, 1, kRows, kDepth), b(DType::f32, 1, 1, kDepth, kCount);
        Matrices c(DType::f32, 1, 1, kRows, kCount);
        for (int k = 0; k < kDepth; ++k) {
          for (int i = 0; i < kRows; ++i) a.set(0, 0, i, k, k != at ? 0.5 : i == 1 ? special : 0);
          for (int j = 0; j < kCount; ++j)
            b.set(0, 0, k, j, k == at ? numbers[j] * (std::isinf(special) ? 1.0f : 0x1p-120f) : 0.25);
        }
        GemmParams params{.M = kRows, .N = kCount, .K = kDepth};
        params.a = a.operand<const void*>(), params.b = b.operand<const void*>();
        params.c = c.operand<void*>();
        multiply(params, {&a, &b, &c});
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kCount; ++j) {
            const auto expected =
                static_cast<float>(a.get(0, 0, i, at) * b.get(0, 0, at, j) + (kDepth - 1) * 0.125);
            const double got = c.get(0, 0, i, j);
            EXPECT_TRUE(std::isnan(expected)   ? std::isnan(got)
                        : std::isinf(expected) ? got == expected
                                               : std::abs(got - expected) <= 0x1p-19 * std::abs(expected))
                << special << " * " << numbers[j] << " in row " << i << ": " << got;
          }
        }
      }
    }
  }
}

// Where both operands have all the bits that the parts of a split number have no room for.
TEST_F(CudaGemm, ProductsAreWithinTheBoundOfTheirSplit) {
  const float number = 0x1.003ffep0f;
  Matrices a(DType::f32, 1, 1, 1, 1), b(DType::f32, 1, 1, 1, 1), c(DType::f32, 1, 1, 1, 1);
  a.set(0, 0, 0, 0, number);
  b.set(0, 0, 0, 0, number);
  GemmParams params{.M = 1, .N = 1, .K = 1};
  params.a = a.operand<const void*>(), params.b = b.operand<const void*>(), params.c = c.operand<void*>();
  multiply(params, {&a, &b, &c});
  const double exact = static_cast<double>(number) * number;
  EXPECT_NEAR(c.get(0, 0, 0, 0), exact, 0x1p-19 * exact);
}

// The epilogue's code is the same in every kernel; whole numbers where the result is one, and real ones.
TEST_F(CudaGemm, Epilogues) {
  for (const DType c : kNarrow) {
    for (const bool aligned : {false, true}) {
      for (const double beta : {0.0, 1.0, -2.0}) {
        Problem p{.M = 40, .N = 72, .K = 24, .a = DType::bf16, .b = DType::bf16, .c = c, .bias = c};
        p.first = aligned ? 0 : 1, p.alpha = -2, p.beta = beta;
        p.with_bias = p.with_residual = beta != 0, p.with_pre_activation = true;
        p.activation = Activation::relu;
        run(p);
        p.activation_backward = true;
        run(p);
      }
    }
  }
  for (const Activation activation : kActivations) {
    for (const DType c : {DType::f32, DType::bf16, DType::f64}) {
      const DType operands = c == DType::f64 ? DType::f64 : DType::bf16;
      Problem p{.M = 33, .N = 40, .K = 24, .a = operands, .b = operands, .c = c, .bias = c};
      p.integers = false, p.first = 0, p.activation = activation;
      p.with_bias = p.with_pre_activation = p.with_residual = true;
      run(p);
      p.activation_backward = true, p.layout_c = Layout::column_major;
      run(p);
    }
  }
}

TEST_F(CudaGemm, SplitsAddUpInTheirOrder) {
  splits_ = 3;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (tile_ = 2; tile_ < cuda::gemm_detail::kTileCount; ++tile_) {
      Problem p{.M = 70, .N = 50, .K = 200, .outer = 2, .a = dtype, .b = dtype, .c = dtype, .bias = dtype};
      p.beta = 1, p.with_bias = p.with_pre_activation = p.with_residual = true;
      p.activation = Activation::relu;
      run(p);
      p.K = 20;  // splits with nothing to do
      run(p);
      p.integers = false, p.K = 333, p.layout_c = Layout::padded;
      run(p);
    }
  }
}

TEST_F(CudaGemm, FewTilesOfALongSumAreSplit) {
  Problem p{.M = 64, .N = 64, .K = 4096, .a = DType::bf16, .b = DType::bf16, .c = DType::bf16};
  const Matrices a(p.a, 1, 1, p.M, p.K, p.layout_a, 0), b(p.b, 1, 1, p.K, p.N, p.layout_b, 0);
  GemmParams params{.M = p.M, .N = p.N, .K = p.K};
  params.a = a.operand<const void*>(), params.b = b.operand<const void*>();
  Matrices c(p.c, 1, 1, p.M, p.N);
  params.c = c.operand<void*>();
  EXPECT_GT(cuda::gemm_workspace(params), 0) << cuda::gemm_plan(params);
  p.first = 0;
  run(p);
}

TEST_F(CudaGemm, DtypesMix) {
  for (const DType a : kNarrow) {
    for (const DType b : kNarrow) {
      for (const DType c : kNarrow) run({.M = 17, .N = 35, .K = 21, .a = a, .b = b, .c = c, .beta = 1});
      Problem p{.M = 35, .N = 18, .K = 50, .outer = 2, .inner = 3, .a = a, .b = b};
      p.layout_a = Layout::column_major, p.layout_b = Layout::padded, p.integers = false;
      for (const bool workspace : {true, false}) {
        workspace_ = workspace;
        run(p);
      }
      workspace_ = true;
    }
  }
  run({.M = 9, .N = 18, .K = 20, .a = DType::f64, .b = DType::f64, .c = DType::f64, .bias = DType::f64});
}

TEST_F(CudaGemm, EmptySumsAndNothingToDo) {
  run({.M = 15, .N = 40, .K = 0});
  run({.M = 15, .N = 40, .K = 0, .a = DType::bf16, .b = DType::bf16, .beta = 2, .with_bias = true});
  run({.M = 0, .N = 40, .K = 7});
  run({.M = 15, .N = 0, .K = 7});
  run({.M = 4, .N = 4, .K = 4, .outer = 0});
  cuda::gemm({.M = 0, .N = 3, .K = 5});  // no pointers at all
}

TEST_F(CudaGemm, BatchesAndBatchStridesOfZero) {
  for (const DType dtype : kNarrow) {
    run({.M = 17, .N = 33, .K = 9, .outer = 2, .inner = 3, .a = dtype, .b = dtype, .c = dtype});
    Problem p{.M = 24, .N = 40, .K = 16, .outer = 3, .inner = 4, .a = dtype, .b = dtype};
    p.first = 0;
    Matrices a(dtype, 3, 4, p.M, p.K, Layout::row_major, 0), b(dtype, 3, 4, p.K, p.N, Layout::row_major, 0);
    Matrices c(p.c, 3, 4, p.M, p.N, Layout::row_major, 0);
    a.set_strides(0, p.M * p.K, p.K, 1);
    b.set_strides(p.K * p.N, 0, p.N, 1);  // grouped queries: the heads of a batch share one b
    fill(a, p, p.M, p.K);
    fill(b, p, p.K, p.N);
    run(p, a, b, c);
  }
}

// q, k, v as (batch, time, heads, dim), scores as (batch, heads, time, time), without copies.
TEST_F(CudaGemm, AttentionLayouts) {
  constexpr std::int64_t kBatch = 2, kTime = 37, kHeads = 3, kDim = 16;
  const auto interleaved = [&] {
    Matrices x(DType::bf16, kBatch, kHeads, kTime, kDim + 1, Layout::row_major, 0);
    x.set_strides(kTime * kHeads * kDim, kDim, kHeads * kDim, 1);
    return x;
  };
  Problem scores{.M = kTime, .N = kTime, .K = kDim, .outer = kBatch, .inner = kHeads};
  scores.a = scores.b = scores.c = DType::bf16;
  Matrices q = interleaved(), k = interleaved(), out = interleaved();
  fill(q, scores, kTime, kDim);
  fill(k, scores, kTime, kDim);
  Matrices k_transposed = k;
  k_transposed.set_strides(kTime * kHeads * kDim, kDim, 1, kHeads * kDim);
  Matrices s(DType::bf16, kBatch, kHeads, kTime, kTime);
  run(scores, q, k_transposed, s);
  Problem mix{.M = kTime, .N = kDim, .K = kTime, .outer = kBatch, .inner = kHeads};
  mix.a = mix.b = mix.c = DType::bf16;
  fill(s, mix, kTime, kTime);
  run(mix, s, k, out);  // also: neither heads nor the memory around are disturbed
}

TEST(CudaGemmPlan, NamesTheKernelAndTheReason) {
  GemmParams params{.M = 4096, .N = 4096, .K = 4096};
  params.a = {.dtype = DType::bf16, .row_stride = 4096},
  params.b = {.dtype = DType::bf16, .row_stride = 4096};
  params.c = {.dtype = DType::bf16, .row_stride = 4096};
  std::byte somewhere[1];
  params.a.data = params.b.data = params.c.data = somewhere;
  const std::string plan = cuda::gemm_plan(params);
  EXPECT_NE(plan.find("bf16"), std::string::npos) << plan;
  EXPECT_NE(plan.find("cycles"), std::string::npos) << plan;
  params.b.dtype = DType::f32;  // converted
  EXPECT_NE(cuda::gemm_plan(params).find("split tf32"), std::string::npos) << cuda::gemm_plan(params);
  params.a.dtype = params.b.dtype = params.c.dtype = DType::f64;
  EXPECT_EQ(cuda::gemm_plan(params), "simt: dtypes or strides that the tensor-core kernels do not take");
}

TEST(CudaGemmPlan, SmallProductsTakeSmallTiles) {
  namespace detail = cuda::gemm_detail;
  const auto tile_for = [](std::int64_t M, std::int64_t N, std::int64_t K) {
    detail::Problem problem{};
    problem.arithmetic = detail::Arithmetic::bf16;
    problem.M = M, problem.N = N, problem.K = K, problem.batches = 1;
    problem.a.bytes_at_a_time = problem.b.bytes_at_a_time = 16;
    problem.a_depth = problem.b_depth = true, problem.c_size = 2;
    return detail::kTiles[detail::best_plan(problem, 1).tile];
  };
  EXPECT_EQ(tile_for(64, 64, 512).rows, 64);
  EXPECT_LE(tile_for(512, 768, 768).rows * tile_for(512, 768, 768).cols, 128 * 64);
  EXPECT_GE(tile_for(8192, 8192, 8192).rows * tile_for(8192, 8192, 8192).cols, 128 * 128);
}

TEST(CudaGemmPlans, AreKept) {
  namespace detail = cuda::gemm_detail;
  const ergon::test::TempFolder folder;
  const std::filesystem::path file = folder.path() / "new" / "plans";
  detail::PlanCache cache(file), other(file);
  cache.add("one", {detail::Arithmetic::bf16, 2, 4});
  other.add("two", {detail::Arithmetic::f16, 4, 1});
  const detail::PlanCache again(file);
  EXPECT_EQ(again.find("one", detail::Arithmetic::bf16), (detail::Plan{detail::Arithmetic::bf16, 2, 4}));
  EXPECT_EQ(again.find("two", detail::Arithmetic::f16), (detail::Plan{detail::Arithmetic::f16, 4, 1}));
  EXPECT_EQ(again.find("three", detail::Arithmetic::bf16), std::nullopt);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(file.parent_path()), {}), 1);
}

TEST(CudaGemmPlans, DamagedFilesAreReplaced) {
  namespace detail = cuda::gemm_detail;
  const ergon::test::TempFolder folder;
  const std::filesystem::path file = folder.path() / "plans";
  for (const std::string text : {"", "nonsense", "ergon gemm plans 1\none\t128x128\t2\nkey\t128x", "\0\1\2",
                                 "ergon gemm plans 1\none\t128x128\t-2\n", "ergon gemm plans 2\n",
                                 "ergon gemm plans 1\none\t1x1\t2\n"}) {
    std::ofstream(file) << text;
    detail::PlanCache cache(file);
    EXPECT_EQ(cache.find("one", detail::Arithmetic::bf16), std::nullopt) << text;
    cache.add("other", {detail::Arithmetic::bf16, 2, 4});
    EXPECT_NE(detail::PlanCache(file).find("other", detail::Arithmetic::bf16), std::nullopt) << text;
  }
}

TEST(CudaGemmPlans, MeasuringLeavesTheOutputAlone) {
  namespace detail = cuda::gemm_detail;
  const TensorOptions options{.dtype = DType::bf16, .device = Device::cuda()};
  const Tensor a = ones({48, 64}, options), c = full({48, 48}, 7, options);
  GemmParams params{.M = 48, .N = 48, .K = 64, .beta = 1};
  params.a = {a.data_ptr(), DType::bf16, 64, 1}, params.b = {a.data_ptr(), DType::bf16, 1, 64};
  params.c = {c.data_ptr(), DType::bf16, 48, 1};
  const detail::Problem problem = detail::problem_of(params);
  const detail::Plan plan = detail::measured_plan(params, problem, 4);
  EXPECT_EQ(plan.arithmetic, detail::Arithmetic::bf16);
  EXPECT_TRUE(equal_bits(c, full({48, 48}, 7, options)));
}

std::string error_of(const GemmParams& params) {
  return ergon::test::error_of([&] { cuda::gemm(params); });
}

TEST(CudaGemmErrors, NameWhatIsWrong) {
  GemmParams params{.M = 1, .N = 1, .K = 1};
  params.a.dtype = DType::i32;
  EXPECT_EQ(error_of(params), "[gemm] dtype i32: expected f32, bf16, f16 or f64");
  params.a.dtype = DType::f64;
  EXPECT_EQ(error_of(params),
            "[gemm] dtypes a f64, b f32, c f32, bias f32: f64 does not mix with the others");
  params.a.dtype = DType::f32;
  EXPECT_EQ(error_of(params), "[gemm] M 1, N 1, K 1: an operand has no data");
  params.N = std::int64_t{1} << 31;
  EXPECT_EQ(error_of(params),
            "[gemm] M 1, N 2147483648, K 1, batch 1 x 1: expected sizes from 0 to 2^31 - 1");
}

}  // namespace
}  // namespace ergon::kernels
