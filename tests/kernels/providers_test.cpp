#include "kernels/providers.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include "tests/support/reference.h"

namespace ergon::kernels {
namespace {

TEST(Providers, TheEnvironmentChoosesAndWrongNamesAreErrors) {
  setenv("ERGON_GEMM", "cublas", 1);
  EXPECT_EQ(test::error_of([] { gemm_provider(); }), "ERGON_GEMM=cublas: expected ergon or cublaslt");
  setenv("ERGON_GEMM", "cublaslt", 1);
  EXPECT_EQ(gemm_provider(), GemmProvider::cublaslt);
  set_gemm_provider(GemmProvider::ergon);
  EXPECT_EQ(gemm_provider(), GemmProvider::ergon);
  unsetenv("ERGON_GEMM");

  setenv("ERGON_CONV", "cuDNN", 1);
  EXPECT_EQ(test::error_of([] { conv_provider(); }), "ERGON_CONV=cuDNN: expected ergon or cudnn");
  unsetenv("ERGON_CONV");
  EXPECT_EQ(conv_provider(), ConvProvider::ergon);
  set_conv_provider(ConvProvider::cudnn);
  EXPECT_EQ(conv_provider(), ConvProvider::cudnn);
  set_conv_provider(ConvProvider::ergon);
}

}  // namespace
}  // namespace ergon::kernels
