#include "core/op_scope.h"

#include "core/cuda_backend.h"
#include "core/error.h"

namespace ergon {
namespace {

thread_local const char* current_op = "no op";

void check_one_device(const char* name, std::initializer_list<const Tensor*> operands) {
  const Tensor* first = nullptr;
  bool one = true;
  for (const Tensor* operand : operands) {
    if (!operand->defined()) continue;
    if (first == nullptr) first = operand;
    one &= operand->device() == first->device();
  }
  if (one) return;
  std::string list;
  for (const Tensor* operand : operands) {
    if (!operand->defined()) continue;
    list +=
        fmt::format("{}{} on {}", list.empty() ? "" : ", ", operand->shape(), to_string(operand->device()));
  }
  ERGON_FAIL("[{}] tensors {}: expected one device", name, list);
}

}  // namespace

const char* OpScope::current() { return current_op; }

OpScope::OpScope(const char* name, Operands operands) : previous_(current_op) {
  check_one_device(name, operands);
  detail::cuda::push_range(name);
  current_op = name;
}

OpScope::~OpScope() {
  detail::cuda::pop_range();
  current_op = previous_;
}

}  // namespace ergon
