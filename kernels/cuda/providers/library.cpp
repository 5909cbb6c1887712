#include "kernels/cuda/providers/library.h"

#include <cstdlib>

#include <dlfcn.h>

namespace ergon::kernels::cuda {

Library::Library(const char* variable, const char* name) {
  const char* named = std::getenv(variable);
  name_ = named == nullptr || *named == '\0' ? name : named;
  handle_ = dlopen(name_, RTLD_NOW | RTLD_LOCAL);
  if (handle_ == nullptr) {
    ERGON_FAIL("cannot load {} ({} of the environment can name another file): {}", name_, variable,
               dlerror());
  }
}

void* Library::address_of(const char* symbol) const {
  void* address = dlsym(handle_, symbol);
  ERGON_CHECK(address != nullptr, "{} has no function {}: it is of another version", name_, symbol);
  return address;
}

}  // namespace ergon::kernels::cuda
