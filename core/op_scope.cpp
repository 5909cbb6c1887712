#include "core/op_scope.h"

#include <utility>

#include "core/cuda_backend.h"
#include "core/error.h"

namespace ergon {
namespace {

thread_local const OpScope* innermost = nullptr;

}  // namespace

const char* OpScope::current() { return innermost == nullptr ? "no op" : innermost->name_; }

std::string OpScope::current_operands() {
  return innermost == nullptr ? std::string() : innermost->describe_operands();
}

void OpScope::enter() {
  const Tensor* first = nullptr;
  for (std::size_t i = 0; i < count_; ++i) {
    if (!operands_[i]->defined()) continue;
    if (first == nullptr) first = operands_[i];
    ERGON_CHECK(operands_[i]->device() == first->device(), "[{}] operands {}: expected one device", name_,
                describe_operands());
  }
  detail::cuda::push_range(name_);
  outer_ = std::exchange(innermost, this);
}

OpScope::~OpScope() {
  detail::cuda::pop_range();
  innermost = outer_;
}

std::string OpScope::describe_operands() const {
  std::string list;
  for (std::size_t i = 0; i < count_; ++i) {
    const Tensor& operand = *operands_[i];
    if (!operand.defined()) continue;
    list += fmt::format("{}{} {} on {}", list.empty() ? "" : ", ", operand.shape(), name_of(operand.dtype()),
                        to_string(operand.device()));
  }
  return list;
}

}  // namespace ergon
