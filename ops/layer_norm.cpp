#include "ops/layer_norm.h"

namespace ergon::ops {
namespace {

constexpr NormOp kLayerNorm{"layer_norm", kernels::cpu::layer_norm_forward, kernels::cpu::layer_norm_backward,
                            true};
constexpr NormOp kAddLayerNorm{"add_layer_norm", kernels::cpu::layer_norm_forward,
                               kernels::cpu::layer_norm_backward, true};

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
