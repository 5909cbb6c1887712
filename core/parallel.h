#pragma once

// Loops over the CPU's cores. The split depends on the range and the grain alone, never on timing.

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ergon {

// Threads that parallel_for uses: OMP_NUM_THREADS, or every core.
inline int num_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

inline bool in_parallel_region() {
#ifdef _OPENMP
  return omp_in_parallel() != 0;
#else
  return false;
#endif
}

// Calls f(begin, end) on consecutive pieces of [begin, end), one a thread, none smaller than `grain` elements
// (but the last). `f` must not throw. Nested calls run on the calling thread.
template <class F>
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, F&& f) {
  const std::int64_t size = end - begin;
  if (size <= 0) return;
#ifdef _OPENMP
  const std::int64_t pieces =
      std::min<std::int64_t>(num_threads(), (size + grain - 1) / std::max<std::int64_t>(grain, 1));
  if (pieces > 1 && !in_parallel_region()) {
#pragma omp parallel num_threads(static_cast <int>(pieces))
    {
      const std::int64_t count = omp_get_num_threads();
      const std::int64_t index = omp_get_thread_num();
      const std::int64_t chunk = (size + count - 1) / count;
      const std::int64_t first = begin + index * chunk;
      const std::int64_t last = std::min(end, first + chunk);
      if (first < last) f(first, last);
    }
    return;
  }
#else
  (void)grain;
#endif
  f(begin, end);
}

}  // namespace ergon
