// Ergon's CPU matrix product against Eigen's:
//   build/cpu/bench/gemm_bench [name filter] [repetitions]

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 on its own AVX-512 header, inlined by Eigen

#include <Eigen/Core>

#include "core/parallel.h"
#include "tests/bench/gemm_table.h"

namespace {

using namespace ergon;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void eigen_gemm(const bench::Shape& s, const float* a, const float* b, float* c) {
  const auto map = [](const float* x, std::int64_t rows, std::int64_t cols) {
    return Eigen::Map<const RowMajor>(x, rows, cols);
  };
  Eigen::Map<RowMajor> out(c, s.M, s.N);
  if (s.trans_a == 'T') {
    out.noalias() = map(a, s.K, s.M).transpose() * map(b, s.K, s.N);
  } else if (s.trans_b == 'T') {
    out.noalias() = map(a, s.M, s.K) * map(b, s.N, s.K).transpose();
  } else {
    out.noalias() = map(a, s.M, s.K) * map(b, s.K, s.N);
  }
}

bench::Contender eigen_contender() {
  return {"eigen",
          [](const bench::Shape& s, const float* a, const float* b, float* c) -> std::function<void()> {
            return [=] {
              if (s.batch == 1) return eigen_gemm(s, a, b, c);
              parallel_for(0, s.batch, 1, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i) {
                  eigen_gemm(s, a + i * s.M * s.K, b + i * s.K * s.N, c + i * s.M * s.N);
                }
              });
            };
          }};
}

}  // namespace

int main(int argc, char** argv) {
  bench::print_table({bench::ergon_contender(), eigen_contender()}, argc > 1 ? argv[1] : "",
                     argc > 2 ? std::atoi(argv[2]) : 15);
}
