#pragma once

// A shared library that is loaded when it is needed, and stays.

#include "core/error.h"

namespace ergon::kernels::cuda {

class Library {
 public:
  // The one that the environment's `variable` names, else `name`; Error where it cannot be loaded.
  Library(const char* variable, const char* name);

  // function = the library's function `symbol`; Error where it has none.
  template <class Function>
  void find(const char* symbol, Function*& function) const {
    function = reinterpret_cast<Function*>(address_of(symbol));
  }

 private:
  void* address_of(const char* symbol) const;

  const char* name_;
  void* handle_;
};

}  // namespace ergon::kernels::cuda
