#include "ops/compare.h"

#include "core/autograd.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"

namespace ergon::ops {
namespace {

using detail::Argument;
using detail::BinaryOp;
using detail::TernaryOp;

Tensor compare(const char* name, BinaryOp op, const Argument& a, const Argument& b) {
  return detail::binary(name, op, a, b, detail::result_type(name, a, b), DType::boolean);
}

// The gradient goes to a where the condition holds, to b elsewhere.
Tensor choose(const Tensor& condition, const Argument& a, const Argument& b) {
  ERGON_CHECK(condition.dtype() == DType::boolean, "[where] condition has dtype {}: expected bool",
              name_of(condition.dtype()));
  const Tensor y =
      detail::ternary("where", TernaryOp::where, condition, a, b, detail::result_type("where", a, b));
  const Tensor &tensor_a = a.tensor(), &tensor_b = b.tensor();
  return autograd::record("where", y, {tensor_a, tensor_b},
                          [condition = autograd::save(condition), restore_a = detail::RestoreInput(tensor_a),
                           restore_b = detail::RestoreInput(tensor_b)](const Tensor& grad_output,
                                                                       const autograd::NeedsGrad& needs) {
                            autograd::Gradients grads(2);
                            if (needs[0]) grads[0] = restore_a(where(condition.get(), grad_output, 0));
                            if (needs[1]) grads[1] = restore_b(where(condition.get(), 0, grad_output));
                            return grads;
                          });
}

}  // namespace

Tensor eq(const Tensor& a, const Tensor& b) { return compare("eq", BinaryOp::eq, a, b); }
Tensor eq(const Tensor& a, Scalar b) { return compare("eq", BinaryOp::eq, a, b); }
Tensor ne(const Tensor& a, const Tensor& b) { return compare("ne", BinaryOp::ne, a, b); }
Tensor ne(const Tensor& a, Scalar b) { return compare("ne", BinaryOp::ne, a, b); }
Tensor lt(const Tensor& a, const Tensor& b) { return compare("lt", BinaryOp::lt, a, b); }
Tensor lt(const Tensor& a, Scalar b) { return compare("lt", BinaryOp::lt, a, b); }
Tensor le(const Tensor& a, const Tensor& b) { return compare("le", BinaryOp::le, a, b); }
Tensor le(const Tensor& a, Scalar b) { return compare("le", BinaryOp::le, a, b); }
Tensor gt(const Tensor& a, const Tensor& b) { return compare("gt", BinaryOp::gt, a, b); }
Tensor gt(const Tensor& a, Scalar b) { return compare("gt", BinaryOp::gt, a, b); }
Tensor ge(const Tensor& a, const Tensor& b) { return compare("ge", BinaryOp::ge, a, b); }
Tensor ge(const Tensor& a, Scalar b) { return compare("ge", BinaryOp::ge, a, b); }

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) { return choose(condition, a, b); }
Tensor where(const Tensor& condition, const Tensor& a, Scalar b) { return choose(condition, a, b); }
Tensor where(const Tensor& condition, Scalar a, const Tensor& b) { return choose(condition, a, b); }

}  // namespace ergon::ops
