#include "models/nn/init.h"

#include <cmath>
#include <utility>

#include "core/autograd.h"
#include "core/half.h"
#include "core/parallel.h"

namespace ergon::nn::init {
namespace {

thread_local bool skips = false;

// tensor = values * scale + shift.
void assign(Tensor& tensor, const Tensor& values, double scale, double shift) {
  NoGradGuard no_grad;
  dispatch_floating(values.dtype(), "init", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* out = values.data<T>();
    parallel_for(0, values.numel(), 16384, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) out[i] = T(double(out[i]) * scale + shift);
    });
  });
  tensor.copy_(values);
}

TensorOptions wide(const Tensor& tensor) { return {tensor.dtype() == DType::f64 ? DType::f64 : DType::f32}; }

}  // namespace

void normal_(Tensor& tensor, double mean, double std, Generator& generator) {
  if (skips) return;
  assign(tensor, randn(tensor.shape(), wide(tensor), generator), std, mean);
}

void uniform_(Tensor& tensor, double low, double high, Generator& generator) {
  if (skips) return;
  assign(tensor, rand(tensor.shape(), wide(tensor), generator), high - low, low);
}

void kaiming_normal_(Tensor& tensor, std::int64_t fan, Generator& generator) {
  ERGON_CHECK(fan > 0, "[kaiming_normal_] fan {}: expected a positive number", fan);
  normal_(tensor, 0, std::sqrt(2.0 / static_cast<double>(fan)), generator);
}

void constant_(Tensor& tensor, double value) {
  if (skips) return;
  NoGradGuard no_grad;
  tensor.fill_(value);
}

SkipGuard::SkipGuard() : before_(std::exchange(skips, true)) {}
SkipGuard::~SkipGuard() { skips = before_; }

}  // namespace ergon::nn::init
