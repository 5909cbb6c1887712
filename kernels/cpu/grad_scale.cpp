#include "kernels/grad_scale.h"

#include <cmath>
#include <numeric>

#include "core/convert.h"
#include "core/half.h"
#include "kernels/cpu/optimizer_chunks.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kBlock = 256;  // elements that are converted at a time

// The chunk's sum of squares; the gradients are multiplied by `factor` after they were read, unless it is 1.
template <class T>
double check_chunk(const Chunk& chunk, double factor) {
  using Acc = accumulate_t<T>;
  constexpr std::int64_t kLanesUsed = 32;
  T* grad = static_cast<T*>(chunk.tensor->grad) + chunk.first;
  Acc lanes[kLanesUsed] = {}, row[kBlock];
  for (std::int64_t first = 0; first < chunk.count; first += kBlock) {
    const std::int64_t n = std::min(kBlock, chunk.count - first);
    convert_run(grad + first, row, n);
    std::fill(row + n, row + kBlock, Acc(0));
    for (std::int64_t i = 0; i < kBlock; i += kLanesUsed) {
      for (std::int64_t lane = 0; lane < kLanesUsed; ++lane) lanes[lane] += row[i + lane] * row[i + lane];
    }
    if (factor != 1) {
      for (Acc& value : row) value *= Acc(factor);
      convert_run(row, grad + first, n);
    }
  }
  double sum = 0;
  for (Acc lane : lanes) sum += double(lane);
  return sum;
}

}  // namespace

void check_gradients(const GradCheck& p) {
  const double inverse = p.loss_scale != nullptr ? 1 / double(*p.loss_scale) : 1;
  for_each_chunk(p.tensors, [&](std::int64_t i, const Chunk& chunk) {
    p.partials[i] = dispatch_floating(chunk.tensor->dtype, "check_gradients", [&](auto tag) {
      return check_chunk<typename decltype(tag)::type>(chunk, p.unscale ? inverse : 1);
    });
  });
  p.finish(std::sqrt(std::accumulate(p.partials, p.partials + p.tensors.chunks, 0.0)));
}

void update_scale(const ScaleUpdate& update) { update.apply(); }

}  // namespace ergon::kernels::cpu
