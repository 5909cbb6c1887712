#pragma once

// Runs a function with another number of threads: results must not depend on it.

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ergon::test {

template <class F>
auto with_threads([[maybe_unused]] int threads, F&& function) {
#ifdef _OPENMP
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  auto result = function();
  omp_set_num_threads(before);
  return result;
#else
  return function();
#endif
}

}  // namespace ergon::test
