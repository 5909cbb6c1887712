#pragma once

// The chunks of an optimiser's tensors, spread over the threads.

#include <algorithm>
#include <iterator>

#include "core/parallel.h"
#include "kernels/optimizer.h"

namespace ergon::kernels::cpu {

struct Chunk {
  const OptimizerTensor* tensor;
  std::int64_t first;
  std::int64_t count;

  // Of one of the tensor's arrays, from element `at` of the chunk on.
  void* address(const void* array, DType dtype, std::int64_t at) const {
    return const_cast<char*>(static_cast<const char*>(array)) + (first + at) * size_of(dtype);
  }
};

// Calls f(chunk index, chunk) in parallel. Threads take chunks in turn: those of biases are short and lie
// together.
template <class F>
void for_each_chunk(const OptimizerTensors& tensors, F&& f) {
  const std::int64_t pieces = std::clamp<std::int64_t>(tensors.chunks / 2, 1, num_threads());
  parallel_for(0, pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      for (std::int64_t i = piece; i < tensors.chunks; i += pieces) {
        const auto after = std::ranges::upper_bound(tensors.list, i, {}, &OptimizerTensor::first_chunk);
        const OptimizerTensor& tensor = *std::prev(after);
        const std::int64_t first = (i - tensor.first_chunk) * kOptimizerChunk;
        f(i, Chunk{&tensor, first, std::min(kOptimizerChunk, tensor.numel - first)});
      }
    }
  });
}

}  // namespace ergon::kernels::cpu
