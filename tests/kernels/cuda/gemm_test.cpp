// The matrix product on CUDA, through its contract.

#include "kernels/gemm.h"

#include <cuda_runtime_api.h>

#include "core/cuda/check.h"
#include "core/tensor.h"
#include "kernels/cuda/gemm/plan.h"
#include "tests/kernels/gemm_fixture.h"
#include "tests/support/reference.h"

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
    const std::int64_t bytes = tile_ < 0 ? cuda::gemm_workspace(there) : 1 << 24;
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
    if (p.a != DType::f32 || p.b != DType::f32) return 0;
    return p.allow_tf32 ? 0x1p-10 : 0x1p-21;
  }

  int tile_ = -1, splits_ = 1;  // -1: as the plan says
};

// Every kernel: integers make the sums exact, whatever the order.
TEST_F(CudaGemm, WholeNumbersAreExactForEveryTileLayoutAndDtype) {
  for (tile_ = 0; tile_ < cuda::gemm_detail::kTileCount; ++tile_) {
    for (const Layout layout_a : {Layout::row_major, Layout::column_major}) {
      for (const Layout layout_b : {Layout::row_major, Layout::column_major}) {
        for (const DType dtype : kNarrow) {
          for (const bool allow_tf32 : {false, true}) {
            if (allow_tf32 && dtype != DType::f32) continue;
            const cuda::gemm_detail::Tile& tile = cuda::gemm_detail::kTiles[tile_];
            Problem p{.M = tile.rows, .N = tile.cols, .K = 40, .a = dtype, .b = dtype, .c = dtype};
            p.layout_a = layout_a, p.layout_b = layout_b, p.allow_tf32 = allow_tf32, p.first = 0;
            run(p);
            p.M += 8, p.N -= 24, p.K = 168;  // edges, and more steps than stages
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

}  // namespace
}  // namespace ergon::kernels
