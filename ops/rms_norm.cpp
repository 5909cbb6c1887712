#include "ops/rms_norm.h"

namespace ergon::ops {
namespace {

constexpr NormOp kRmsNorm{"rms_norm", false};
constexpr NormOp kAddRmsNorm{"add_rms_norm", false};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return normalize(kRmsNorm, x, {}, weight, {}, eps).normed;
}

AddNormResult add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  ERGON_CHECK(residual.defined(), "[add_rms_norm] the residual is undefined");
  return normalize(kAddRmsNorm, x, residual, weight, {}, eps);
}

}  // namespace ergon::ops
