#include "ops/layer_norm.h"

namespace ergon::ops {
namespace {

constexpr NormOp kLayerNorm{"layer_norm", true};
constexpr NormOp kAddLayerNorm{"add_layer_norm", true};

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return normalize(kLayerNorm, x, {}, weight, bias, eps).normed;
}

AddNormResult add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                             const Tensor& bias, double eps) {
  ERGON_CHECK(residual.defined(), "[add_layer_norm] the residual is undefined");
  return normalize(kAddLayerNorm, x, residual, weight, bias, eps);
}

}  // namespace ergon::ops
