#pragma once

// Initial values of parameters, written in place.

#include "core/tensor.h"

namespace ergon::nn::init {

// Normal with the given mean and standard deviation.
void normal_(Tensor& tensor, double mean = 0, double std = 1, Generator& generator = default_generator());

// Uniform in [low, high).
void uniform_(Tensor& tensor, double low = 0, double high = 1, Generator& generator = default_generator());

// Normal with standard deviation sqrt(2 / fan): He et al. 2015, arXiv 1502.01852. `fan` is the number of
// inputs (or of outputs) that each unit sums over.
void kaiming_normal_(Tensor& tensor, std::int64_t fan, Generator& generator = default_generator());

void constant_(Tensor& tensor, double value);

// While one lives, the functions above do nothing on its thread: for a model whose parameters are read next.
class SkipGuard {
 public:
  SkipGuard();
  ~SkipGuard();
  SkipGuard(const SkipGuard&) = delete;
  SkipGuard& operator=(const SkipGuard&) = delete;

 private:
  bool before_;
};

}  // namespace ergon::nn::init
