#pragma once

// Which op this thread is in: for the device's error messages, the list of memory's holders, and profilers'
// timelines (an NVTX range).

#include <initializer_list>

#include "core/tensor.h"

namespace ergon {

// Opens every op:
//   OpScope scope("matmul", a, b);
class OpScope {
 public:
  // Throws Error naming the op, shapes and devices where the operands (undefined ones aside) lie on several
  // devices. `name` must outlive the scope: a string literal.
  template <class... Tensors>
  explicit OpScope(const char* name, const Tensors&... operands) : OpScope(name, Operands{&operands...}) {}
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

  // The innermost scope's name; "no op" outside of all.
  static const char* current();

 private:
  using Operands = std::initializer_list<const Tensor*>;
  OpScope(const char* name, Operands operands);

  const char* previous_;
};

}  // namespace ergon
