#pragma once

// Which op this thread is in: for the device's error messages, the list of memory's holders, and profilers'
// timelines (an NVTX range).

#include <array>
#include <string>
#include <type_traits>

#include "core/tensor.h"

namespace ergon {

// Opens every op:
//   OpScope scope("matmul", a, b);
class OpScope {
 public:
  // Throws Error naming the op, shapes and devices where the operands (undefined ones aside) lie on several
  // devices. `name` (a string literal) and the operands must outlive the scope.
  template <class... Tensors>
  explicit OpScope(const char* name, Tensors&&... operands)
      : name_(name), operands_{&operands...}, count_(sizeof...(Tensors)) {
    static_assert((std::is_lvalue_reference_v<Tensors> && ...), "an operand must outlive the scope");
    enter();
  }
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

  // The innermost scope's name; "no op" outside of all.
  static const char* current();
  // The shapes, dtypes and devices of its operands: "(2, 3) f32 on cuda:0, (3) f32 on cuda:0".
  static std::string current_operands();

 private:
  void enter();
  std::string describe_operands() const;

  const char* name_;
  std::array<const Tensor*, 8> operands_;
  std::size_t count_;
  const OpScope* outer_ = nullptr;
};

}  // namespace ergon
