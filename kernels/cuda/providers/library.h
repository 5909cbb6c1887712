#pragma once

// A shared library that is loaded when it is needed, and stays.

#include "core/error.h"

namespace ergon::kernels::cuda {

class Library {
 public:
  // The one that the environment's `variable` names, else `name`; Error where it cannot be loaded.
  Library(const char* variable, const char* name);

  // The library's function `symbol`; Error where it has none.
  template <class Function>
  Function find(const char* symbol) const {
    return reinterpret_cast<Function>(address_of(symbol));
  }

 private:
  void* address_of(const char* symbol) const;

  const char* name_;
  void* handle_;
};

}  // namespace ergon::kernels::cuda

// The function of `library` that a header declares, found when this is first evaluated.
#define ERGON_FUNCTION(library, function)                                              \
  ([] {                                                                                \
    static const auto ergon_function = (library).find<decltype(&function)>(#function); \
    return ergon_function;                                                             \
  }())
