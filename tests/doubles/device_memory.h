#pragma once

// Runs of elements of device memory, as fp64 on the host. For libraries of tests that take the place of
// NVIDIA's: calls of the CUDA runtime go to that of the program that loads them.

#include <cstdint>
#include <cstdlib>
#include <vector>

#include <Eigen/Core>
#include <cuda_runtime_api.h>
#include <library_types.h>

namespace ergon::test_double {

// Calls f(value of the type), for the four types that there are.
template <class F>
decltype(auto) with_type(cudaDataType_t type, F&& f) {
  switch (type) {
    case CUDA_R_16BF:
      return f(Eigen::bfloat16());
    case CUDA_R_16F:
      return f(Eigen::half());
    case CUDA_R_64F:
      return f(double());
    default:
      return f(float());
  }
}

inline const char* offset(const void* data, cudaDataType_t type, std::int64_t element) {
  return static_cast<const char*>(data)
         + element * with_type(type, [](auto value) { return static_cast<std::int64_t>(sizeof(value)); });
}

inline std::vector<double> read(const void* data, cudaDataType_t type, std::int64_t first,
                                std::int64_t count) {
  return with_type(type, [&](auto zero) {
    std::vector<decltype(zero)> values(static_cast<std::size_t>(count));
    if (cudaMemcpy(values.data(), offset(data, type, first), values.size() * sizeof(zero),
                   cudaMemcpyDeviceToHost)
        != cudaSuccess)
      std::abort();
    return std::vector<double>(values.begin(), values.end());
  });
}

inline void write(void* data, cudaDataType_t type, std::int64_t first, const std::vector<double>& values) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> rounded;
    for (const double value : values) rounded.push_back(static_cast<T>(value));
    if (cudaMemcpy(const_cast<char*>(offset(data, type, first)), rounded.data(), rounded.size() * sizeof(T),
                   cudaMemcpyHostToDevice)
        != cudaSuccess)
      std::abort();
  });
}

}  // namespace ergon::test_double
