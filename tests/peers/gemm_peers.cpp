// Ergon's CPU matrix product against oneDNN (sgemm and the matmul primitive) and MKL. Not part of the build;
// the peers come from Debian (libdnnl-dev) or PyPI (mkl, mkl-include, onednn-cpu-gomp and its -devel
// package); LIB and INCLUDE are the directories where they are installed:
//   g++ -std=c++20 -O3 -march=native -fopenmp -I. -I$INCLUDE -isystem /usr/include/eigen3 \
//       tests/peers/gemm_peers.cpp build/cpu/libergon.a -L$LIB -ldnnl -l:libmkl_rt.so.3 -Wl,-rpath,$LIB \
//       -lspdlog -lfmt -o gemm_peers
//   OMP_NUM_THREADS=2 ./gemm_peers [name filter] [repetitions]
// All contenders share GNU's OpenMP runtime and so one team of threads.

#include <cstdlib>
#include <unordered_map>

#include <dnnl.hpp>
#include <mkl.h>

#include "tests/bench/gemm_table.h"

namespace {

using namespace ergon::bench;
using Run = std::function<void()>;

Run mkl(const Shape& s, const float* a, const float* b, float* c) {
  const auto ta = s.trans_a == 'T' ? CblasTrans : CblasNoTrans,
             tb = s.trans_b == 'T' ? CblasTrans : CblasNoTrans;
  if (s.batch == 1) {
    return [=] { cblas_sgemm(CblasRowMajor, ta, tb, s.M, s.N, s.K, 1, a, s.lda(), b, s.ldb(), 0, c, s.N); };
  }
  return [=] {
    cblas_sgemm_batch_strided(CblasRowMajor, ta, tb, s.M, s.N, s.K, 1, a, s.lda(), s.M * s.K, b, s.ldb(),
                              s.K * s.N, 0, c, s.N, s.M * s.N, s.batch);
  };
}

Run dnnl_sgemm_calls(const Shape& s, const float* a, const float* b, float* c) {
  return [=] {
    for (std::int64_t i = 0; i < s.batch; ++i) {
      dnnl_sgemm(s.trans_a, s.trans_b, s.M, s.N, s.K, 1, a + i * s.M * s.K, s.lda(), b + i * s.K * s.N,
                 s.ldb(), 0, c + i * s.M * s.N, s.N);
    }
  };
}

// Strides as given: what a framework with its own layout pays.
Run matmul_primitive(const Shape& s, const float* a, const float* b, float* c) {
  using namespace dnnl;
  static engine cpu(engine::kind::cpu, 0);
  static stream queue(cpu);
  const auto describe = [&](std::int64_t rows, std::int64_t cols, bool transposed) {
    return memory::desc({s.batch, rows, cols}, memory::data_type::f32,
                        transposed ? memory::dims{rows * cols, 1, rows} : memory::dims{rows * cols, cols, 1});
  };
  const auto a_desc = describe(s.M, s.K, s.trans_a == 'T'), b_desc = describe(s.K, s.N, s.trans_b == 'T'),
             c_desc = describe(s.M, s.N, false);
#if DNNL_VERSION_MAJOR >= 3
  const matmul::primitive_desc desc(cpu, a_desc, b_desc, c_desc);
#else
  const matmul::primitive_desc desc(matmul::desc(a_desc, b_desc, c_desc), cpu);
#endif
  const matmul primitive(desc);
  const std::unordered_map<int, memory> args = {
      {DNNL_ARG_SRC, memory(a_desc, cpu, const_cast<float*>(a))},
      {DNNL_ARG_WEIGHTS, memory(b_desc, cpu, const_cast<float*>(b))},
      {DNNL_ARG_DST, memory(c_desc, cpu, c)},
  };
  return [=] { primitive.execute(queue, args), queue.wait(); };
}

}  // namespace

int main(int argc, char** argv) {
  setenv("MKL_THREADING_LAYER", "GNU", 0);
  print_table(
      {ergon_contender(), {"mkl", mkl}, {"dnnl sgemm", dnnl_sgemm_calls}, {"dnnl matmul", matmul_primitive}},
      argc > 1 ? argv[1] : "", argc > 2 ? std::atoi(argv[2]) : 15);
}
