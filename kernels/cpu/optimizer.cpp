#include "kernels/optimizer.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/convert.h"

namespace ergon::kernels::cpu {
namespace {

constexpr std::int64_t kBlock = 256;  // elements converted to and from half precision at a time

struct Chunk {
  const OptimizerTensor* tensor;
  std::int64_t first;
  std::int64_t count;
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

// Calls f(param, grad, state0, state1, n) for blocks of the chunk, param and grad in the arithmetic type, and
// writes param.
template <class T, class F>
void for_each_block(const Chunk& chunk, F&& f) {
  using Acc = accumulate_t<T>;
  T* param = static_cast<T*>(chunk.tensor->param) + chunk.first;
  const T* grad = static_cast<const T*>(chunk.tensor->grad) + chunk.first;
  Acc* state0 = static_cast<Acc*>(chunk.tensor->state0);
  Acc* state1 = static_cast<Acc*>(chunk.tensor->state1);
  if (state0 != nullptr) state0 += chunk.first;
  if (state1 != nullptr) state1 += chunk.first;
  if constexpr (std::is_same_v<T, Acc>) {
    f(param, grad, state0, state1, chunk.count);
  } else {
    Acc wide_param[kBlock], wide_grad[kBlock];
    for (std::int64_t i = 0; i < chunk.count; i += kBlock) {
      const std::int64_t n = std::min(kBlock, chunk.count - i);
      convert_run(param + i, wide_param, n);
      convert_run(grad + i, wide_grad, n);
      f(wide_param, wide_grad, state0 == nullptr ? nullptr : state0 + i,
        state1 == nullptr ? nullptr : state1 + i, n);
      convert_run(wide_param, param + i, n);
    }
  }
}

template <class T>
void adamw_chunk(const AdamWStep& s, const Chunk& chunk) {
  using Acc = accumulate_t<T>;
  const double correction1 = 1 - std::pow(s.beta1, static_cast<double>(s.step));
  const double correction2 = 1 - std::pow(s.beta2, static_cast<double>(s.step));
  const Acc scale = Acc(s.grad_scale), decay = Acc(1 - chunk.tensor->lr * chunk.tensor->weight_decay);
  const Acc rate = Acc(chunk.tensor->lr / correction1), root = Acc(1 / std::sqrt(correction2)),
            eps = Acc(s.eps);
  const Acc keep1 = Acc(s.beta1), keep2 = Acc(s.beta2), take1 = Acc(1 - s.beta1), take2 = Acc(1 - s.beta2);
  for_each_block<T>(chunk, [&](Acc* __restrict param, const Acc* __restrict grad, Acc* __restrict exp_avg,
                               Acc* __restrict exp_avg_sq, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
      const Acc g = grad[i] * scale;
      const Acc m = keep1 * exp_avg[i] + take1 * g;
      const Acc v = keep2 * exp_avg_sq[i] + take2 * g * g;
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      param[i] = param[i] * decay - rate * m / (std::sqrt(v) * root + eps);
    }
  });
}

template <class T>
void sgd_chunk(const SgdStep& s, const Chunk& chunk) {
  using Acc = accumulate_t<T>;
  const Acc scale = Acc(s.grad_scale), decay = Acc(chunk.tensor->weight_decay), rate = Acc(chunk.tensor->lr);
  const Acc momentum = Acc(s.momentum), keep = Acc(s.first_step ? 0 : s.momentum),
            take = Acc(s.first_step ? 1 : 1 - s.dampening);
  for_each_block<T>(chunk, [&](Acc* __restrict param, const Acc* __restrict grad, Acc* __restrict buffer,
                               Acc*, std::int64_t n) {
    if (buffer == nullptr) {
      for (std::int64_t i = 0; i < n; ++i) param[i] -= rate * (grad[i] * scale + decay * param[i]);
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        const Acc g = grad[i] * scale + decay * param[i];
        const Acc b = keep * buffer[i] + take * g;
        buffer[i] = b;
        param[i] -= rate * (s.nesterov ? g + momentum * b : b);
      }
    }
  });
}

template <class T>
double chunk_sum_of_squares(const Chunk& chunk) {
  using Acc = accumulate_t<T>;
  constexpr std::int64_t kLanesUsed = 32;
  const T* grad = static_cast<const T*>(chunk.tensor->grad) + chunk.first;
  Acc lanes[kLanesUsed] = {}, row[kBlock];
  for (std::int64_t first = 0; first < chunk.count; first += kBlock) {
    const std::int64_t n = std::min(kBlock, chunk.count - first);
    convert_run(grad + first, row, n);
    std::fill(row + n, row + kBlock, Acc(0));
    for (std::int64_t i = 0; i < kBlock; i += kLanesUsed) {
      for (std::int64_t lane = 0; lane < kLanesUsed; ++lane) lanes[lane] += row[i + lane] * row[i + lane];
    }
  }
  double sum = 0;
  for (Acc lane : lanes) sum += double(lane);
  return sum;
}

}  // namespace

void adamw_step(const AdamWStep& step) {
  for_each_chunk(step.tensors, [&](std::int64_t, const Chunk& chunk) {
    dispatch_floating(chunk.tensor->dtype, "adamw_step",
                      [&](auto tag) { adamw_chunk<typename decltype(tag)::type>(step, chunk); });
  });
}

void sgd_step(const SgdStep& step) {
  for_each_chunk(step.tensors, [&](std::int64_t, const Chunk& chunk) {
    dispatch_floating(chunk.tensor->dtype, "sgd_step",
                      [&](auto tag) { sgd_chunk<typename decltype(tag)::type>(step, chunk); });
  });
}

void sum_of_squares(const SumOfSquares& params) {
  for_each_chunk(params.tensors, [&](std::int64_t i, const Chunk& chunk) {
    params.partials[i] = dispatch_floating(chunk.tensor->dtype, "sum_of_squares", [&](auto tag) {
      return chunk_sum_of_squares<typename decltype(tag)::type>(chunk);
    });
  });
  *params.sum = std::accumulate(params.partials, params.partials + params.tensors.chunks, 0.0);
}

}  // namespace ergon::kernels::cpu
